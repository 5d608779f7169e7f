#!/usr/bin/env bash
# Runs a suite in an environment made for it.
#
#     ./scripts/test.sh [pytest arguments]          the main suite, in .venv
#     ./scripts/test.sh NAME [pytest arguments]     another one:
#         lint     ruff and mypy, in .venv
#         floor    model and compatibility under the oldest supported transformers, in .venvs/floor
#         browser  the chat page in Chromium, which must be installed, in .venv
#         npu      the real torch_npu on a host stand-in for CANN, in .venvs/npu
#         lowering  the Triton kernels through the Ascend compilers, in .venvs/lowering
#         vllm     the plugin in vLLM on the CPU, and the service with its engine, in .venvs/vllm
#         vllm-ascend  the plugin in vllm-ascend on the host stand-in for CANN, in .venvs/vllm-ascend
#         deepspeed  the real DeepSpeed's ZeRO-3 over two processes on the CPU, in .venvs/deepspeed
#         mindspore  the model on MindSpore, without torch, in .venvs/mindspore
#         openmind  the real openMind 1.0.0 trains and exports the model, in .venv and .venvs/openmind (Python 3.10)
#     ./scripts/test.sh make NAME                   its environment alone; the main suite's name is main
#
# TORCH_SPEC chooses the torch to install, in pip's words (see environment.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/environment.sh
source scripts/environment.sh

readonly SUITES="lint, floor, browser, npu, lowering, vllm, vllm-ascend, deepspeed, mindspore, openmind"

only_make=false
if [[ ${1:-} == make ]]; then
    only_make=true
    shift
fi
suite=main
# A word that is neither an option nor a path is the name of a suite.
if [[ $# -gt 0 && $1 != -* && $1 != */* && $1 != *.py* && ! -e $1 ]]; then
    suite=$1
    shift
fi
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    sed -n '2,18s/^# \{0,1\}//p' scripts/test.sh
    exit
fi

# run_tests ENVIRONMENT OPTIONS FOLDERS ARGUMENT...: the suite's folders, unless an argument names a path.
run_tests() {
    local python="$1/bin/python" options=$2 folders=$3 argument
    shift 3
    for argument in "$@"; do
        [[ $argument == tests/* ]] && folders=""
    done
    # shellcheck disable=SC2086
    exec "$python" -m pytest $options $folders "$@"
}

make_main() {
    make_environment .venv dev --editable '.[dev]'
}

make_browser() {
    command -v chromium >/dev/null || command -v google-chrome >/dev/null ||
        die "no Chromium: install one (on Debian the package chromium)"
    make_main
    make_environment .venv browser 'playwright>=1.50'
}

make_vllm() {
    make_on_top vllm --requirement requirements/vllm.txt
    # Built for CUDA, their import fails beside a CPU build of torch; vLLM does without.
    .venvs/vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null
}

make_vllm_ascend() {
    make_environment .venvs/vllm-ascend vllm-ascend --editable . --requirement requirements/vllm-ascend.txt
    SOC_VERSION=ascend910b1 COMPILE_CUSTOM_KERNELS=0 TORCH_DEVICE_BACKEND_AUTOLOAD=0 \
        make_environment .venvs/vllm-ascend alone --no-build-isolation --no-deps \
        --requirement requirements/vllm-ascend-alone.txt
}

# make_on_top NAME REQUIREMENT...: .venvs/NAME has what .venv has, but for the requirements, which it has itself.
make_on_top() {
    local folder=.venvs/$1 purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
    make_main
    if [[ ! -x $folder/bin/python ]]; then
        .venv/bin/python -m venv "$folder" || die "cannot make $folder: see the message above"
        printf 'import site; site.addsitedir("%s")\n' "$(.venv/bin/python -c "$purelib")" \
            >"$("$folder/bin/python" -c "$purelib")/main.pth"
    fi
    make_environment "$folder" "$@"
}

make_mindspore() {
    TORCH_SPEC=none make_environment .venvs/mindspore mindspore --requirement requirements/mindspore.txt
    TORCH_SPEC=none make_environment .venvs/mindspore alone --no-deps --editable .
}

make_openmind() {
    local python310
    python310=$(find_python310)
    make_main
    PYTHON=$python310 TORCH_SPEC="--no-deps torch==2.1.0" \
        make_environment .venvs/openmind openmind --no-deps --requirement requirements/openmind.txt
    .venvs/openmind/bin/python scripts/cuda_placeholders.py
}

case $suite in
    main | lint) make_main ;;
    floor) make_on_top floor transformers==5.16.1 ;;
    browser) make_browser ;;
    npu) make_on_top npu --requirement requirements/npu.txt ;;
    lowering) make_on_top lowering --require-hashes --requirement requirements/lowering.txt ;;
    vllm) make_vllm ;;
    vllm-ascend) make_vllm_ascend ;;
    deepspeed) DS_BUILD_OPS=0 make_on_top deepspeed deepspeed==0.19.8 ;;
    mindspore) make_mindspore ;;
    openmind) make_openmind ;;
    *) die "unknown suite $suite: one of $SUITES, or none for the main suite" ;;
esac
if $only_make; then
    exit
fi

case $suite in
    main) exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@" ;;
    lint)
        .venv/bin/ruff check .
        .venv/bin/ruff format --check .
        .venv/bin/mypy
        ;;
    floor)
        # What transformers has no part in is left out: the operators, the paged model, a prompt's every split.
        run_tests .venvs/floor "-n 2 --dist worksteal" "tests/compat tests/model -k not(every_split)
            --ignore tests/model/test_decoder.py --ignore tests/model/test_inference_model.py
            --ignore tests/model/test_paged.py" "$@"
        ;;
    browser) run_tests .venv "" tests/browser "$@" ;;
    npu) run_tests .venvs/npu "-n 2 --dist worksteal" tests/npu "$@" ;;
    lowering) run_tests .venvs/lowering "-n 2 --dist worksteal" tests/lowering "$@" ;;
    vllm)
        if [[ $# -eq 0 ]]; then # the interfaces' tests, on vLLM's engine
            ASCEND_M1_TEST_ENGINE=vllm .venvs/vllm/bin/python -m pytest -n 2 --dist loadfile tests/serve/api \
                tests/serve/mindie/test_families.py tests/serve/mindie/test_clients.py \
                tests/serve/mindie/test_openai.py tests/serve/mindie/test_planes.py
        fi
        run_tests .venvs/vllm "-n 2 --dist worksteal" tests/vllm "$@"
        ;;
    vllm-ascend)
        export PYTHONPATH="$PWD/tests/vllm_ascend/site${PYTHONPATH:+:$PYTHONPATH}"  # what vLLM misses on this machine
        # The golden tests, too: vllm-ascend pins a transformers that is older than the floor's.
        run_tests .venvs/vllm-ascend "-n 2 --dist worksteal" \
            "tests/vllm_ascend tests/model/test_golden.py -k not(every_split)" "$@"
        ;;
    deepspeed) run_tests .venvs/deepspeed "" tests/deepspeed "$@" ;;
    # tests/conftest.py is for torch.
    mindspore) run_tests .venvs/mindspore "--confcutdir tests/mindspore -n 2 --dist loadgroup" tests/mindspore "$@" ;;
    openmind)
        rm -rf build # else setuptools installs what lies there, too
        .venvs/openmind/bin/python -m pip install --quiet --no-deps --force-reinstall . || die "cannot install the package"
        rm -rf build
        export ASCEND_M1_OPENMIND="$PWD/.venvs/openmind"
        run_tests .venv "" tests/openmind "$@"
        ;;
esac
