#!/bin/sh
# robomimic and Minari read what the relabeller wrote. Run from the repository's root.
# PYTHON makes the environments, BIN is the package's own; ENVS is where they are kept.
set -eu
PYTHON="${PYTHON:-python3}"
BIN="${BIN:-.venv/bin}"
ENVS="${ENVS:-.venv-formats}"

if [ ! -f "$ENVS/minari/.installed-0.5.4" ]; then
	"$PYTHON" -m venv "$ENVS/minari"
	"$ENVS/minari/bin/pip" install --quiet "minari[arrow,hdf5]==0.5.4" pillow
	touch "$ENVS/minari/.installed-0.5.4"
fi
if [ ! -f "$ENVS/robomimic/.installed-0.3.0" ]; then
	"$PYTHON" -m venv "$ENVS/robomimic"
	# What its dataset class imports; what else it declares builds from source or is for training.
	"$ENVS/robomimic/bin/pip" install --quiet -c constraints.txt h5py numpy psutil termcolor torch tqdm
	"$ENVS/robomimic/bin/pip" install --quiet --no-deps robomimic==0.3.0
	touch "$ENVS/robomimic/.installed-0.3.0"
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$BIN/python" -m scripts.verify_hdf5 write "$work"
"$ENVS/minari/bin/python" scripts/verify_hdf5/owner_minari.py write "$work"
"$BIN/python" -m scripts.verify_hdf5 relabel "$work"
TQDM_DISABLE=1 "$ENVS/robomimic/bin/python" scripts/verify_hdf5/owner_robomimic.py "$work"
"$ENVS/minari/bin/python" scripts/verify_hdf5/owner_minari.py read "$work"
