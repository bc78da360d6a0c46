#!/usr/bin/env bash
# The queued resource of tpu_vm.sh: its states, creating it, and again after it was taken away.
# tpu_vm.sh reads this file; name, zone, project and the other settings are its.
#
# Note: a TPU that is gone although nobody here removed it is not created again.
# Preempted ones stay in the list as SUSPENDED; one that has left it was deleted, on purpose.
# shellcheck disable=SC2154

tpus() { gcloud compute tpus "$@" --zone="$zone" ${project:+"--project=$project"} </dev/null; }


# Prints the state of the queued resource, GONE without one. A list, because an error of describe
# does not tell "there is none" from "no answer".
resource_state() {
  tpus queued-resources list --format='value(name.basename(),state.state)' |
    awk -v name="$name" '$1 == name { state = $2 } END { print state ? state : "GONE" }'
}

answered=0
tries=0 # failures in a row
back_off() {
  local seconds=$pause_first i
  for ((i = 0; i < tries && seconds < pause_most; i++)); do seconds=$((seconds * 2)); done
  tries=$((tries + 1))
  sleep "$((seconds < pause_most ? seconds : pause_most))"
}

look() { # sets state; once it has answered gcloud may fail for a while, as when this machine slept
  local attempt
  for attempt in 1 2 3 4 5 6 7 8; do
    if state=$(resource_state); then
      answered=1
      return
    fi
    [[ $answered -eq 1 ]] || break
    say "gcloud does not list queued resources (attempt $attempt of 8)"
    back_off
  done
  fail "gcloud does not answer: check gcloud auth login, --project and --zone. What runs there goes on, and costs" 4
}

delete_resource() { # $1: how many tries
  local attempt
  for ((attempt = 1; attempt <= $1; attempt++)); do
    if tpus queued-resources delete "$name" --force --quiet; then return; fi
    [[ $attempt -lt $1 ]] || break
    back_off
    look
    [[ $state != GONE ]] || return 0
  done
  fail "$name could not be deleted and may still cost money: run delete again, or delete queued resource and TPU at https://console.cloud.google.com/compute/tpus" 4
}

# How often it was created again, whether it was ever seen, what was said last, whether it is gone by
# our own doing, restarts on this TPU; failures in a row to reach its workers, and to create it.
# shellcheck disable=SC2034
created=0 seen=0 said="" fresh=0 started=0 lost=0 refused=0
ready() { # waits until the TPU is there; creates it, and again where it was taken away
  while :; do
    look
    [[ $state == "$said" ]] || say "$name: $state"
    said=$state
    case $state in
      ACTIVE)
        seen=1 fresh=0 refused=0
        return
        ;;
      GONE)
        [[ $seen -eq 0 || $fresh -eq 1 ]] ||
          fail "$name was deleted by somebody else; it is not created again. run goes on from $workdir" 75
        say "creating $name: $accelerator in $zone$([[ $spot == 0 ]] || echo ', spot')"
        local tier=()
        [[ $spot == 0 ]] || tier=(--spot)
        if tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$accelerator" \
          --runtime-version="$runtime" ${tier[@]+"${tier[@]}"}; then
          seen=1 fresh=0
        else
          # It was created before with the same flags: it may be there although gcloud failed.
          refused=$((refused + 1))
          [[ $fresh -eq 1 && $refused -lt 8 ]] ||
            fail "$name could not be created; gcloud says why above (type, runtime, zone, quota)" 4
          back_off
        fi
        ;;
      SUSPENDED | FAILED)
        again
        ;;
      *) sleep "$poll" ;;
    esac
  done
}

again() { # removes a TPU that cannot be used, so that ready creates it anew
  local why
  why=$(tpus queued-resources describe "$name" --format='value(state.failedData.error.message)') || why=""
  [[ $created -lt $recreations ]] ||
    fail "$name is lost${why:+ ($why)}, and was created again $created times (--recreations): delete it, or run again to go on" 75
  created=$((created + 1))
  say "$name is lost${why:+ ($why)}; re-creation $created of $recreations"
  back_off
  delete_resource 8
  # shellcheck disable=SC2034  # read by tpu_vm.sh
  fresh=1 started=0 said="" lost=0
}
