#!/bin/sh
# LeRobot 0.3.3 (v2.1) and 0.4.4 (v3.0) read what the relabeller wrote. Run from the repository's
# root. PYTHON makes the environments, BIN is the package's own; ENVS is where they are kept.
set -eu
PYTHON="${PYTHON:-python3}"
BIN="${BIN:-.venv/bin}"
ENVS="${ENVS:-.venv-formats}"

# What LeRobot's datasets import. The rest of what it declares is for robots and training, and some
# of that builds from source only. This torchvision still reads videos (by PyAV), as both ask for.
prepare() {
	version="$1"
	shift
	if [ ! -f "$ENVS/lerobot-$version/.installed-$version" ]; then
		"$PYTHON" -m venv "$ENVS/lerobot-$version"
		"$ENVS/lerobot-$version/bin/pip" install --quiet torch==2.7.1 torchvision==0.22.1 \
			draccus==0.10.0 "einops>=0.8,<0.9" "jsonlines>=4,<5" "termcolor>=2.4,<4" \
			"deepdiff>=7.0.1,<9" "packaging>=24.2,<26" "av>=15,<16" "$@"
		"$ENVS/lerobot-$version/bin/pip" install --quiet --no-deps "lerobot==$version"
		touch "$ENVS/lerobot-$version/.installed-$version"
	fi
}
prepare 0.3.3 "datasets>=2.19,<=3.6.0" "huggingface-hub>=0.34.2,<1"
prepare 0.4.4 "datasets>=4,<5" "huggingface-hub>=0.34.2,<0.36" "accelerate>=1.10,<2"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# datasets keeps what it reads in a folder of its own; it must not read an older one.
export HF_HOME="$work/cache" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
"$BIN/python" -m scripts.verify_lerobot "$work" "$@"
# torchvision says of its reader of videos that a later one has none.
export PYTHONWARNINGS=ignore
"$ENVS/lerobot-0.3.3/bin/python" scripts/verify_lerobot/owner_lerobot.py "$work"
"$ENVS/lerobot-0.4.4/bin/python" scripts/verify_lerobot/owner_lerobot.py "$work"
