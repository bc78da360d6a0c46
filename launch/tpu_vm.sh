#!/usr/bin/env bash
# Trains on a Cloud TPU VM or pod slice, and again after every preemption. See usage below.
#
# Note: no exit status of ssh is believed. gcloud answers 1 for its own failures and
# with the first worker's code for theirs, so workers keep their code in a file and print it with a
# mark (tpu_worker.sh). And no setting stands in a remote command line: they go as files.
set -euo pipefail
umask 077

usage() {
  cat <<'TEXT'
launch/tpu_vm.sh COMMAND [FLAGS] [-- OVERRIDES...]

  create   ask for the TPU (a queued resource) and wait until it is there
  setup    install Python 3.12 and this checkout on every worker
  run      all of it: create, setup, start training, follow the log; create the TPU again and resume
           after a preemption; start again after exit codes 75, 71, 70. Ends with the run's code.
           Ctrl-C leaves the training running; run again takes over.
  logs     follow the log of a worker (--worker=K, default 0)
  status   how the TPU and the run stand
  stop     let the run save and end (exit code 75); the TPU stays
  delete   give the TPU back

  flag              environment       default
  --name=           TPU_NAME          (needed)
  --zone=           ZONE              (needed)
  --project=        PROJECT_ID        gcloud's
  --accelerator=    ACCELERATOR_TYPE  v5litepod-16
  --runtime=        RUNTIME_VERSION   v2-alpha-tpuv5-lite
  --workdir=        WORKDIR           (needed by run) gs://BUCKET/FOLDER
  --config=         CONFIG            configs/sst2.py; a file of this checkout's configs/
  --recreations=    RECREATIONS       20   how often the TPU may be created again
  --restarts=       RESTARTS          10   how often training may start again on one TPU
  --on-demand       SPOT=0            spot

  launch/tpu_vm.sh run --name=bert --zone=us-west4-a --workdir=gs://my-bucket/sst2 \
      --config=configs/sst2.py -- --config.train.epochs=2

It needs gcloud, logged in; for several workers also an ssh-agent with
~/.ssh/google_compute_engine. HF_TOKEN goes to the workers if it is set, as a file of mode 600.
TEXT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
name=${TPU_NAME:-} zone=${ZONE:-} project=${PROJECT_ID:-} spot=${SPOT:-1}
accelerator=${ACCELERATOR_TYPE:-v5litepod-16} runtime=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}
workdir=${WORKDIR:-} config=${CONFIG:-configs/sst2.py} worker=0
recreations=${RECREATIONS:-20} restarts=${RESTARTS:-10}
overrides=()
# Seconds: between looks at the queue, the first pause after a failure, the longest one, and how long
# other workers may go on once one has ended (they take 30 to notice).
poll=${POLL_SECONDS:-30} pause_first=${PAUSE_SECONDS:-10} pause_most=300
patience=${PATIENCE_SECONDS:-90}

# shellcheck source=launch/tpu_queue.sh
source "$root/launch/tpu_queue.sh"

say() { printf 'tpu_vm.sh: %s\n' "$*" >&2; }
fail() {
  say "$1"
  exit "${2:-2}"
}

parse() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --accelerator=*) accelerator=${1#*=} ;;
      --runtime=*) runtime=${1#*=} ;;
      --workdir=*) workdir=${1#*=} ;;
      --config=*) config=${1#*=} ;;
      --worker=*) worker=${1#*=} ;;
      --recreations=*) recreations=${1#*=} ;;
      --restarts=*) restarts=${1#*=} ;;
      --on-demand) spot=0 ;;
      --)
        shift
        overrides=("$@")
        break
        ;;
      *) fail "unknown flag $1; see --help. Overrides of the config stand after --" ;;
    esac
    shift
  done
  [[ -n $name ]] || fail "which TPU? Give --name=NAME or set TPU_NAME"
  [[ -n $zone ]] || fail "which zone? Give --zone=ZONE or set ZONE"
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    fail "--name=$name: expected lower-case letters, digits and -, beginning with a letter"
  [[ $recreations$restarts$worker =~ ^[0-9]+$ ]] ||
    fail "--recreations, --restarts and --worker are whole numbers"
  command -v gcloud >/dev/null ||
    fail "gcloud is not there: install the Google Cloud CLI, then gcloud auth login"
}

check_run() {
  [[ -n $workdir ]] || fail "run needs --workdir=gs://BUCKET/FOLDER"
  if [[ $workdir != gs://?* && $spot != 0 ]]; then
    fail "--workdir=$workdir: a spot machine's disk goes with it; give gs://BUCKET/FOLDER"
  fi
  # Training runs in the folder of the checkout, which the next setup replaces.
  [[ $workdir == gs://?* || $workdir == /* ]] ||
    fail "--workdir=$workdir: give gs://BUCKET/FOLDER, or with --on-demand the worker's own /PATH"
  [[ $config == configs/* && -f $root/${config%%:*} ]] ||
    fail "--config=$config: no such file; expected one in $root/configs (put yours there)"
}

# gcloud itself tries ten times to connect; these keep a dead machine from holding it for hours.
on_worker() {
  tpus tpu-vm ssh "$name" --worker="$1" --ssh-flag=-oConnectTimeout=20 \
    --ssh-flag=-oServerAliveInterval=15 --ssh-flag=-oServerAliveCountMax=4 --command="$2"
}
on_all() { on_worker all "bash flaxbert-launch/tpu_worker.sh $1"; }

send() { # local files into flaxbert-launch/ on every worker
  tpus tpu-vm scp "$@" "$name:flaxbert-launch/" --worker=all --scp-flag=-p
}

scratch=$(mktemp -d)
setup() {
  local parts=(flaxbert configs pyproject.toml README.md CHANGELOG.md LICENSE)
  on_worker all 'umask 077; mkdir -p flaxbert-launch' || return
  # && throughout: set -e does not act in what || or if looks at.
  (cd "$root" && find "${parts[@]}" -type f ! -name '*.pyc' | LC_ALL=C sort | tr '\n' '\0' |
    xargs -0 cksum | cksum >"$scratch/stamp") &&
    COPYFILE_DISABLE=1 tar -C "$root" -czf "$scratch/source.tar.gz" --exclude=__pycache__ "${parts[@]}" || return
  send "$scratch/source.tar.gz" "$scratch/stamp" "$root/launch/tpu_worker.sh" || return
  on_all setup
}

start() {
  local all=("--config=$config" "--workdir=$workdir" ${overrides[@]+"${overrides[@]}"})
  { printf 'arguments=(' && printf '%q ' "${all[@]}" && printf ')\n'; } >"$scratch/arguments"
  printf '%s' "${HF_TOKEN:-}" >"$scratch/hf_token"
  send "$scratch/arguments" "$scratch/hf_token" || return
  on_all start
}

survey() { # prints every worker's KIND CODE; fails unless all answer. $scratch/answered: one did
  local found workers status=0
  rm -f "$scratch/answered"
  workers=$(tpus tpu-vm describe "$name" --format='value(networkEndpoints.len())') || return
  found=$(on_worker all 'if [ -f flaxbert-launch/tpu_worker.sh ]; then bash flaxbert-launch/tpu_worker.sh state; else echo "flaxbert-state none 0"; fi' |
    sed -n 's/^flaxbert-state //p') || status=1
  [[ -n $found ]] || return
  : >"$scratch/answered"
  [[ $status -eq 0 && $(wc -l <<<"$found") -ge $workers ]] || return
  printf '%s\n' "$found"
}

# Prints what is to blame that workers do not answer. The TPU where some do, or where the cloud says
# so; else it may be ssh from here, an agent or a network that is gone, and the training goes on.
blamed() { # tpu, here or unknown
  local health
  if [[ -f $scratch/answered ]]; then
    echo tpu
  elif ! health=$(tpus tpu-vm describe "$name" --format='value(state,health)'); then
    echo unknown
  elif [[ $health =~ ^READY([[:space:]]+HEALTHY)?[[:space:]]*$ ]]; then
    echo here
  else
    echo tpu
  fi
}

# 2, 3, 4, 5 and unknown codes say why a run ended, then 75, 70, death by a signal, 71; as local.py.
most_telling() {
  awk '{ print $2 }' | sort -n | awk '
    { rank = $1 == 0 ? 7 : $1 ~ /^[2-5]$/ ? 1 : $1 == 75 ? 3 : $1 == 70 ? 4 : $1 == 71 ? 6 : $1 > 128 ? 5 : 2 }
    NR == 1 || rank < best { best = rank; code = $1 }
    END { print code }'
}

quit_following() {
  # Every job is a group of its own (set -m): gcloud's ssh goes with gcloud.
  local group
  for group in $(jobs -p); do kill -- "-$group" 2>/dev/null || true; done
}
trap 'quit_following; rm -rf "$scratch"' EXIT
trap 'say "the training goes on (and costs); run takes over again, stop ends it, delete gives the TPU back"; exit 130' INT TERM HUP

follow() { # until the run or the TPU ends, or the connection
  local follower
  set -m
  on_worker 0 'bash flaxbert-launch/tpu_worker.sh follow' &
  follower=$!
  (: >"$scratch/watching" && while sleep "$poll"; do
    now=$(resource_state) || continue
    [[ $now == ACTIVE ]] || kill -- "-$follower"
  done) 2>/dev/null &
  set +m
  wait "$follower" 2>/dev/null || true
  # A job that is killed before its first command runs the trap above, as if it were this shell.
  for _ in $(seq 100); do
    [[ -f $scratch/watching ]] && break
    sleep 0.05
  done
  rm -f "$scratch/watching"
  quit_following
  wait "$!" 2>/dev/null || true
}

judge() { # prints ongoing, lost, or how the run ended: stopped CODE, ended CODE
  local states since=$SECONDS
  while :; do
    if ! states=$(survey) || grep -q '^none' <<<"$states"; then
      echo lost
      return
    fi
    if ! grep -q '^running' <<<"$states"; then
      printf '%s %s\n' "$(grep -q '^stopped' <<<"$states" && echo stopped || echo ended)" \
        "$(most_telling <<<"$states")"
      return
    fi
    grep -qv '^running' <<<"$states" || { echo ongoing && return; }
    [[ $((SECONDS - since)) -lt $patience ]] || on_all kill >/dev/null || true
    sleep "$pause_first"
  done
}

begin() { # starts the run on every worker, unless it runs already; 1 without an answer, 2: setup failed
  local states workers
  states=$(survey) || return 1
  if grep -q '^running' <<<"$states"; then
    say "training runs already; following"
    return
  fi
  workers=$(wc -l <<<"$states")
  [[ $workers -eq 1 || $workdir == gs://?* ]] ||
    fail "--workdir=$workdir: $workers workers need one that all of them see; give gs://BUCKET/FOLDER"
  { setup && start; } || return 2
}

run() {
  local how code begun failed=0
  while :; do
    ready
    begun=0
    begin || begun=$?
    how=lost code=""
    if [[ $begun -eq 0 ]]; then
      failed=0 lost=0 tries=0
      follow
      read -r how code <<<"$(judge)"
    elif [[ $begun -eq 2 ]]; then
      failed=$((failed + 1))
      [[ $failed -lt 3 ]] || fail "setup failed $failed times, see above; the TPU is there, and costs" 4
    fi
    if [[ $how == lost ]]; then
      lost=$((lost + 1))
      look
      say "workers do not answer ($lost of 5; the TPU is $state). Several workers need: ssh-add ~/.ssh/google_compute_engine"
      if [[ $state == ACTIVE && $lost -ge 5 ]]; then
        case $(blamed) in
          tpu) again ;;
          here) fail "no worker answers ssh from here, and the cloud finds the TPU healthy: what trains there goes on, and costs. Look at ssh-agent, network and firewall; run takes over again, delete gives the TPU back" 4 ;;
        esac
      fi
      back_off
      continue
    fi
    lost=0 tries=0
    case $how/$code in
      ongoing/*) continue ;;
      stopped/*) fail "stopped; run goes on from $workdir" "$code" ;;
      ended/0 | ended/[2-5]) fail "training ended with $code; the TPU costs until: launch/tpu_vm.sh delete --name=$name --zone=$zone" "$code" ;;
    esac
    # Not a fault of the run if the machine is being taken away.
    look
    [[ $state == ACTIVE ]] || continue
    [[ $code -eq 75 || $code -eq 70 || $code -eq 71 || $code -gt 128 ]] && [[ $started -lt $restarts ]] ||
      fail "training ended with $code after $started restarts on this TPU (--restarts=$restarts); its log: launch/tpu_vm.sh logs. The TPU still costs" "$code"
    started=$((started + 1))
    say "training ended with $code; restart $started of $restarts"
    tries=$((started - 1))
    back_off
  done
}

status() {
  look
  say "$name: $state"
  [[ $state == ACTIVE ]] || return 0
  survey | sort | uniq -c | awk '{ printf "tpu_vm.sh: %s worker(s): %s%s\n", $1, $2, $2 == "ended" || $2 == "stopped" ? " with " $3 : "" }' >&2 ||
    fail "workers do not answer" 4
}

command=${1:-}
case $command in
  "" | help | --help | -h)
    usage
    exit 0
    ;;
  create | setup | run | logs | status | stop | delete) shift ;;
  *) fail "unknown command $command; see --help" ;;
esac
parse "$@"
case $command in
  create) ready ;;
  setup) setup || fail "setup failed; see above. It can be run again" 4 ;;
  run)
    check_run
    run
    ;;
  logs) on_worker "$worker" 'bash flaxbert-launch/tpu_worker.sh follow 100' ;;
  status) status ;;
  stop) on_all stop ;;
  delete)
    look
    if [[ $state == GONE ]]; then
      say "$name: there is none in $zone, nothing costs"
    else
      delete_resource 1
      say "$name is deleted. Only the bucket costs now"
    fi
    ;;
esac
