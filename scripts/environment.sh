# Makes and reuses the project's virtual environments. Sourced by quickstart.sh and test.sh, not run.
# shellcheck shell=bash

# pip does not compile here (see pip_install): where this is set, Python would compile anew at every start.
unset PYTHONDONTWRITEBYTECODE

# What to install as torch, in pip's words; pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf) count too.
# Where pip knows both builds of this version, it takes 2.13.0+cpu.
readonly DEFAULT_TORCH=torch==2.13.0
# The word none leaves it out.
TORCH_SPEC=${TORCH_SPEC:-$DEFAULT_TORCH}

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 2
}

# Prints a Python from 3.10 on that can make environments. PYTHON=/path/to/python chooses one.
find_python() {
    local candidate found=""
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.10 python3; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
        found=$candidate
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    if [[ -n $found ]]; then
        die "$found lacks the venv module: install it (on Debian and Ubuntu the package python3-venv) and run this again"
    fi
    die "no Python 3.10 or newer found: install Python 3.11, or set PYTHON=/path/to/python"
}

# Prints a Python 3.10: openMind refuses any newer.
find_python310() {
    local candidate
    for candidate in python3.10 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10.*/bin/python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python 3.10, which openMind needs: install it, or with pyenv: pyenv install 3.10"
}

# make_environment FOLDER NAME REQUIREMENT...: an environment with torch and the requirements. The stamp is written last,
# so a finished one is left alone and an interrupted one is taken up again.
make_environment() {
    local folder=$1 stamp="$1/.ready-$2" wanted python
    shift 2
    wanted="$PWD $* $(cat pyproject.toml requirements/*.txt | cksum)"
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        return
    fi
    rm -f "$stamp"
    if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        say "making $folder with $("$python" --version)"
        rm -rf "$folder"
        "$python" -m venv "$folder" || die "cannot make $folder: see the message above"
    fi
    if [[ $TORCH_SPEC != none ]] &&
        ! "$folder/bin/python" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
        explain_torch
        local torch_words
        read -ra torch_words <<<"$TORCH_SPEC"
        pip_install "$folder" "${torch_words[@]}"
    fi
    say "installing $*"
    pip_install "$folder" "$@"
    printf '%s\n' "$wanted" >"$stamp"
}

explain_torch() {
    say "installing $TORCH_SPEC (a few minutes)"
    if [[ $(uname -sm) == "Linux x86_64" && $TORCH_SPEC == "$DEFAULT_TORCH" ]]; then
        say "  The CPU build if pip knows an index that has it, else one with gigabytes of CUDA. To choose: stop this, set"
        say "  PIP_EXTRA_INDEX_URL to the index of CPU wheels named in PyTorch's installation guide and run it again; with"
        say "  TORCH_SPEC='torch==2.13.0+cpu' (or --torch) nothing else is taken."
    fi
}

# Without compiling: Python does so for the few modules that are imported.
pip_install() {
    local folder=$1
    shift
    "$folder/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check "$@" ||
        die "pip could not install $*: see its message above, mend it and run this again"
}
