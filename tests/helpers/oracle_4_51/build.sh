#!/usr/bin/env bash
# Makes the environment in which tests/maira_jax/model/oracle_test.py runs MAIRA-2 as its authors last tested it:
# transformers 4.51.3. Give the folder, or .venv-oracle is made in the repository.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv="${1:-.venv-oracle}"
python="$(command -v python3.11 || command -v python3.12 || command -v python3)"
"$python" -m venv "$venv"
# torch alone and first, so that nothing else chooses its version.
"$venv/bin/pip" install -q torch==2.13.0
"$venv/bin/pip" install -q transformers==4.51.3 numpy safetensors
"$venv/bin/python" -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'
