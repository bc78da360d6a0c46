#!/usr/bin/env bash
# What tpu_vm.sh does on every worker of a TPU: install, start, say how it stands, follow, stop.
# tpu_vm.sh copies it to ~/flaxbert-launch/ and calls it there; it is not for use by hand.
#
# Note: that training runs is known by a lock which the processes of the run hold,
# not by a process number: it goes with them, however they end, and numbers are used again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
umask 077

say() { printf 'flaxbert-launch: %s\n' "$*"; }
running() { ! flock --shared --nonblock lock true; }

install_python() {
  # Images of TPU VMs bring Python 3.10; uv fetches one of its own.
  [[ -x tools/bin/uv ]] && return
  if ! python3 -m pip --version >/dev/null 2>&1; then
    # Unattended upgrades hold the lock for minutes after the first boot.
    sudo apt-get -o DPkg::Lock::Timeout=600 update -qq
    sudo apt-get -o DPkg::Lock::Timeout=600 install -y -qq python3-pip
  fi
  python3 -m pip install --quiet --target=tools uv
}

setup() {
  exec 8>setup.lock
  flock 8
  local stamp
  stamp=$(cat stamp)
  if [[ $(cat installed 2>/dev/null) == "$stamp" ]]; then
    say "installed already"
    return
  fi
  if running; then
    say "training runs; stop it before another version is installed"
    exit 1
  fi
  rm -rf installed source
  mkdir source
  tar -xzf source.tar.gz -C source
  install_python
  tools/bin/uv venv --quiet --allow-existing --python=3.12 venv
  # uv takes a folder for unchanged as long as its pyproject.toml is.
  tools/bin/uv pip install --quiet --python=venv/bin/python --reinstall-package=flaxbert \
    "./source[tpu,gcs]"
  printf '%s\n' "$stamp" >installed
  say "installed"
}

start() {
  exec 9>lock
  if ! flock --wait 5 9; then
    say "running already"
    return
  fi
  rm -f code stopped pid
  printf '\n--- started %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" >>log
  # A session of its own: it outlives the connection. It inherits the lock.
  nohup setsid bash tpu_worker.sh job >>log 2>&1 </dev/null &
  for _ in $(seq 100); do
    [[ -f pid ]] && break
    sleep 0.05
  done
  say "started"
}

# The run itself. Signals are caught, not ignored: what is ignored stays ignored in the command.
job() {
  trap : TERM INT HUP
  local code=0
  (
    trap - TERM INT HUP
    printf '%s\n' "$BASHPID" >pid.tmp
    mv pid.tmp pid
    # shellcheck disable=SC1091  # written by tpu_vm.sh: arguments=(...)
    source ./arguments
    if [[ -s hf_token ]]; then
      HF_TOKEN=$(cat hf_token)
      export HF_TOKEN
    fi
    cd source
    # shellcheck disable=SC2154
    exec ../venv/bin/python -m flaxbert.train "${arguments[@]}"
  ) || code=$?
  printf '%s\n' "$code" >code.tmp
  mv code.tmp code
}

# One line: running, stopped CODE (by the user), ended CODE, or none. No code without a run: killed.
state() {
  touch lock
  if running; then
    echo "flaxbert-state running 0"
  elif [[ -f stopped ]]; then
    echo "flaxbert-state stopped $(cat code 2>/dev/null || echo 137)"
  elif [[ -f log ]]; then
    echo "flaxbert-state ended $(cat code 2>/dev/null || echo 137)"
  else
    echo "flaxbert-state none 0"
  fi
}

follow() {
  [[ -f log ]] || {
    say "no run yet"
    return
  }
  if running && [[ -f pid ]]; then
    tail --pid="$(cat pid)" --sleep-interval=0.3 --lines="$1" -F log
  else
    tail --lines="$1" log
  fi
}

signal_run() {
  if running && [[ -f pid ]]; then
    kill "-$1" "$(cat pid)" || true
  fi
}

case ${1:-} in
  setup | start | job | state) "$1" ;;
  follow) follow "${2:-40}" ;;
  stop)
    if running; then touch stopped; fi
    signal_run TERM
    ;;
  kill) signal_run KILL ;;
  *)
    say "tpu_worker.sh is called by tpu_vm.sh"
    exit 2
    ;;
esac
