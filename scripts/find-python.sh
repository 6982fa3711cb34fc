#!/bin/sh
# Print the path of a Python that can run this project: 3.10 or newer, able to make virtual
# environments, arm64 on a Mac. If there is none, say in one line what was found and what to do.
#
# PYTHON=... names the one to use. Without it: on PATH, then where Homebrew, pyenv and python.org
# put theirs, because macOS's own python3 is 3.9.

version() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
native() {
    "$1" -c 'import platform, sys
sys.exit(sys.platform == "darwin" and platform.machine() != "arm64")' 2>/dev/null
}
makes_venvs() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

found= problem=

# Print $1 and end when it will do; otherwise remember what is wrong with it.
try() {
    python=$(command -v "$1" 2>/dev/null) || return 0
    number=$(version "$python") || return 0
    found="$found $python ($number)"
    new_enough "$python" || return 0
    if ! native "$python"; then
        problem="$python is an Intel Python and MLX needs an arm64 one: brew install python@3.13"
    elif ! makes_venvs "$python"; then
        minor=${number%.*}
        problem="$python cannot make virtual environments: sudo apt install python$minor-venv"
    else
        printf '%s\n' "$python"
        exit 0
    fi
}

if [ -n "$PYTHON" ]; then
    try "$PYTHON"
    printf 'mlx-qwen3: %s\n' "${problem:-PYTHON=$PYTHON is not a Python 3.10 or newer}" >&2
    exit 1
fi
for name in python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do
    try "$name"
done
for file in /opt/homebrew/bin/python3* /usr/local/bin/python3* "$HOME"/.pyenv/versions/*/bin/python3 \
    /Library/Frameworks/Python.framework/Versions/3.*/bin/python3; do
    case $file in
    *config* | *-intel64 | *'*'*) ;;
    *) try "$file" ;;
    esac
done

if [ -z "$problem" ]; then
    problem="this needs Python 3.10 or newer and found${found:- none}; install one (macOS: brew \
install python@3.13; Debian, Ubuntu: sudo apt install python3 python3-venv) or name it: make PYTHON=..."
fi
printf 'mlx-qwen3: %s\n' "$problem" >&2
exit 1
