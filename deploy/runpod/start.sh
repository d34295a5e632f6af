#!/usr/bin/env bash
# The processes of one RunPod pod: docs/how-to/runpod.md explains them.
#
#   POD_PROCESSES  which: web, io, keeper, sdxl, wan, chat; default all. One family: "web chat"
#   POD_VOLUME     where the volume is mounted; default /workspace
#   POD_PULL       `no` pulls no checkpoints; by default those are pulled that no setting names
#   POD_REDIS_PORT port of the pod's own Redis server, which runs where no other one is set; default 6379
#   POD_SILENT_S   after how many seconds without a sign of life a process is killed; default 180
#   POD_WATCH_S    how often that is looked at, in seconds; default 30
#
# All other variables are OurVidz's settings. A process that ends is started again, with growing pauses. SIGTERM stops
# the workers, which drain for OURVIDZ_DRAIN_S, then io and the shim, then the server.
set -euo pipefail

read -r -a processes <<< "${POD_PROCESSES:-web io keeper sdxl wan chat}"
folder="${POD_VOLUME:-/workspace}/ourvidz"
longest_pause=30

log() { printf '%s pod: %s\n' "$(date -u +%FT%TZ)" "$*" >&2; }
fail() {
  log "$*"
  if declare -F stop > /dev/null; then stop redis; fi
  exit 2
}

for name in "${processes[@]}"; do
  case "$name" in
    web | io | keeper | sdxl | wan | chat) ;;
    *) fail "POD_PROCESSES: there is no process $name; there are web, io, keeper, sdxl, wan and chat" ;;
  esac
done

# RunPod passes on a reference to a secret that does not exist as it is written in the template.
missing="$(env | sed -n 's/^\([A-Za-z0-9_]*\)={{ *RUNPOD_SECRET_.*/\1/p' | sort | paste -sd ' ' -)"
[ -z "$missing" ] || fail "the RunPod secrets of these variables do not exist: $missing"

mkdir -p "$folder"
# RunPod starts containers as root. What runs from here on belongs to the image's user, where there is one.
if [ "$(id -u)" = 0 ] && id ourvidz > /dev/null 2>&1; then
  chown ourvidz:ourvidz "$folder"
  exec setpriv --reuid=ourvidz --regid=ourvidz --init-groups --no-new-privs -- "$BASH" "${BASH_SOURCE[0]}" "$@"
fi
umask 077
mkdir -p "$folder/run"

# Callers reach the shim through RunPod's proxy, so it listens on all addresses and needs keys. Chat is expected at 7861.
export OURVIDZ_HOST="${OURVIDZ_HOST:-0.0.0.0}"
export OURVIDZ_PORTS="${OURVIDZ_PORTS:-7860,7861}"
export OURVIDZ_GPU="${OURVIDZ_GPU:-0}"
export OURVIDZ_MODELS_DIR="${OURVIDZ_MODELS_DIR:-$folder/models}"
export PYTHONUNBUFFERED=1

# --- supervision ---------------------------------------------------------------------------------------------------

declare -A supervisors=()
declare -A silent=()
sleeper=""

# Runs in a subshell: keeps one command running until SIGTERM, which it passes on.
supervise() {
  local name="$1" child="" stopping="" pause=1 began status
  shift
  trap 'stopping=1; [ -z "$child" ] || kill -TERM "$child" 2> /dev/null || true' TERM
  trap '' INT HUP
  while [ -z "$stopping" ]; do
    began=$SECONDS
    "$@" &
    child=$!
    echo "$child" > "$folder/run/$name.pid"
    # The signal may have come before `child` was set.
    [ -z "$stopping" ] || kill -TERM "$child" 2> /dev/null || true
    status=0
    # A signal ends `wait` before the child.
    while kill -0 "$child" 2> /dev/null; do wait "$child" && status=0 || status=$?; done
    # Its number may soon be another process's.
    rm -f "$folder/run/$name.pid"
    [ -z "$stopping" ] || break
    [ $((SECONDS - began)) -lt 60 ] || pause=1
    log "$name ended with status $status; it starts again in $pause s"
    sleep "$pause" &
    child=$!
    wait "$child" || true
    pause=$((pause * 2 > longest_pause ? longest_pause : pause * 2))
  done
}

start() {
  local name="$1"
  supervise "$@" &
  supervisors[$name]=$!
}

stop() {
  local name
  for name in "$@"; do
    [ -z "${supervisors[$name]:-}" ] || kill -TERM "${supervisors[$name]}" 2> /dev/null || true
  done
  for name in "$@"; do
    [ -z "${supervisors[$name]:-}" ] || wait "${supervisors[$name]}" 2> /dev/null || true
    unset "supervisors[$name]"
  done
}

stop_all() {
  trap '' TERM INT
  [ -z "$sleeper" ] || kill "$sleeper" 2> /dev/null || true
  log "stopping"
  stop sdxl wan chat keeper
  stop io web
  stop redis
  log "stopped"
  exit 0
}
trap stop_all TERM INT

# --- the Redis server ----------------------------------------------------------------------------------------------

# The configuration is read from standard input: the password is on no command line. `exec`: the server gets the signals.
run_redis() {
  exec "$server" - << CONFIGURATION
bind 127.0.0.1
port $redis_port
requirepass $password
dir "$folder/redis"
save ""
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
CONFIGURATION
}

redis_answers() { (exec 3<> "/dev/tcp/127.0.0.1/$redis_port") 2> /dev/null; }

if [ -z "${OURVIDZ_REDIS_URL:-}${UPSTASH_REDIS_REST_URL:-}" ]; then
  server="${REDIS_SERVER_BIN:-$(command -v redis-server || command -v valkey-server || true)}"
  [ -n "$server" ] || fail "set OURVIDZ_REDIS_URL: this image has no Redis server of its own"
  redis_port="${POD_REDIS_PORT:-6379}"
  mkdir -p "$folder/redis"
  [ -s "$folder/redis/password" ] || od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$folder/redis/password"
  password="$(cat "$folder/redis/password")"
  export OURVIDZ_REDIS_URL="redis://:$password@127.0.0.1:$redis_port/0"
  start redis run_redis
  waited=0
  until redis_answers; do
    [ "$waited" -lt 300 ] || fail "the Redis server does not start"
    waited=$((waited + 1))
    sleep 0.2
  done
fi

# --- checkpoints ---------------------------------------------------------------------------------------------------

models=()
for name in "${processes[@]}"; do
  case "$name" in
    sdxl) [ -n "${OURVIDZ_SDXL_MODEL:-}" ] || models+=(sdxl) ;;
    wan) [ -n "${OURVIDZ_WAN_MODEL:-}" ] || models+=(wan) ;;
    chat) [ -n "${OURVIDZ_QWEN_MODEL:-}" ] || models+=(qwen) ;;
  esac
done
if [ "${POD_PULL:-yes}" != no ] && [ "${OURVIDZ_PROFILE:-}" = production ] && [ "${#models[@]}" -gt 0 ]; then
  log "pulling ${models[*]}"
  ourvidz models pull "${models[@]}" > "$folder/run/pulled.env" &
  # In the background: a signal must not wait for a download.
  wait $! || fail "the checkpoints cannot be pulled"
  while IFS='=' read -r name value; do
    [ -z "$name" ] || export "$name=$value"
  done < "$folder/run/pulled.env"
fi

# --- the processes -------------------------------------------------------------------------------------------------

# Every part of a process changes the time of a file in its folder once a second.
run_process() {
  rm -rf "${folder:?}/run/$1"
  mkdir -p "$folder/run/$1"
  exec env OURVIDZ_BEATS_DIR="$folder/run/$1" ourvidz worker "$1"
}

# Kills a process that was silent at two looks: after a pause of the whole pod all are, for a moment.
check() {
  local name="$1" pid parts
  pid="$(cat "$folder/run/$name.pid" 2> /dev/null || true)"
  parts="$(find "$folder/run/$name" -type f -not -newermt "${POD_SILENT_S:-180} seconds ago" 2> /dev/null || true)"
  if [ -z "$parts" ] || [ -z "$pid" ]; then
    silent[$name]=""
  elif [ -z "${silent[$name]:-}" ]; then
    silent[$name]=1
  else
    log "$name shows no sign of life and is killed"
    silent[$name]=""
    kill -KILL "$pid" 2> /dev/null || true
  fi
}

for name in "${processes[@]}"; do
  start "$name" run_process "$name"
done
log "started: ${processes[*]}"
while :; do
  sleep "${POD_WATCH_S:-30}" &
  sleeper=$!
  wait "$sleeper" || true
  for name in "${processes[@]}"; do check "$name"; done
done
