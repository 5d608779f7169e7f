#!/usr/bin/env bash
# From a fresh checkout to answers: makes .venv, installs the project, asks the embedded model three questions.
#
#     ./scripts/quickstart.sh
#     ./scripts/quickstart.sh --torch "torch==2.13.0"     # or TORCH_SPEC=…: which torch to install, in pip's words
#
# Needs Linux and Python 3.10 to 3.12. Running it again is quick; after an interruption it goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/environment.sh
source scripts/environment.sh

usage() { sed -n '2,7s/^# \{0,1\}//p' scripts/quickstart.sh; }

while (($#)); do
    case $1 in
        --torch)
            [[ -n ${2:-} ]] || die "--torch needs a value, for instance --torch \"torch==2.13.0\""
            TORCH_SPEC=$2
            shift 2
            ;;
        -h | --help)
            usage
            exit
            ;;
        *) die "unknown argument $1: see ./scripts/quickstart.sh --help" ;;
    esac
done

ask() {
    printf '\n$ ascend-m1 generate "%s"\n' "$1"
    .venv/bin/ascend-m1 generate "$1"
}

make_environment .venv base --editable .
ask "What does ICD-10-CM code J45 mean?"
ask "Which ICD-10-CM code means Essential (primary) hypertension?"
ask "Which chapter is E11 in?"

cat <<'END'

What next (source .venv/bin/activate first):
  ascend-m1 chat               a conversation with the embedded model
  ascend-m1 generate --help    your own prompts, --model DIR for a Baichuan-M1-14B checkpoint
  ascend-m1 plan               the memory that Baichuan-M1-14B needs
  ascend-m1 env                what is installed here, what is missing for an NPU
  ./scripts/test.sh            the test suite
END
