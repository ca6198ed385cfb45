#!/bin/sh
# Makes a Python 2.7 environment with the Autobahn test suite in the folder named, unless one is there; the tests look
# for it in target/autobahn-venv. Fails where there is no Python 2.7 (pyenv install 2.7.18), or where its packages
# cannot be had.
set -eu
[ -e "$1/ready" ] && exit
# Where pyenv chooses among several versions; elsewhere it means nothing.
export PYENV_VERSION=2.7.18
python2 -m pip install --quiet --user virtualenv==20.15.1
python2 -m virtualenv --quiet "$1"
"$1/bin/pip" install --quiet autobahntestsuite==25.10.1
touch "$1/ready"
