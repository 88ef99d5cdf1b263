#!/bin/bash
# Builds, tests, sanitizes and measures fastscore on a machine with a GPU, in one call of under eight
# minutes: first what only a GPU can tell. Needs python3 with a CUDA build of torch, nvcc,
# compute-sanitizer and pytest; no network.
#
#   benchmarks/gpu_check.sh                          results go to benchmarks/results/gpu
#   OUT=directory benchmarks/gpu_check.sh            ... to another directory
#   PARTS="kernels jobs" benchmarks/gpu_check.sh     only these; what other parts wrote is kept
#   PREBUILT=directory benchmarks/gpu_check.sh       the extension of that directory, if it is for
#                                                    this Python, in place of building (a minute)
#   SECONDS_IN_ALL=300 benchmarks/gpu_check.sh       ... at most; 450 if it is not said
#   REHEARSE=1 benchmarks/gpu_check.sh               every line of it on the CPU, at small sizes, the
#                                                    kernels emulated in place of the GPU
#
# Parts, in their order:
#   tests      those marked `cuda`, and compute-sanitizer's memcheck beside them
#   kernels    single ops against copies, eager and torch.compile
#   jobs       sampling under CUDA graphs and training steps, end to end
#   profile    what bounds the main kernels, by Nsight Compute
#   sanitizers racecheck, initcheck and synccheck
#   large      tests with more than 2^31 elements
#
# Each part writes its result at once: summary.txt, build.log, tests.log, sanitizer.log,
# gpu_kernels.json, gpu_jobs.json, benchmarks.log, profile.csv. A part that fails or runs out of time
# does not keep the others from running. Exits with 1 when any part failed.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results/gpu}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
BUDGET=${SECONDS_IN_ALL:-450}
PARTS=${PARTS:-tests kernels jobs profile sanitizers large}
REHEARSE=${REHEARSE:-}
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
CORES=$(nproc)
failed=0

wanted() { [[ " $PARTS " == *" $1 "* ]]; }

left() { echo $((BUDGET - SECONDS)); }

note() { echo "$*" | tee -a "$OUT/summary.txt"; }

# part NAME SECONDS LOG COMMAND...: runs the command with a limit, its output going to the log.
part() {
  local name=$1 limit=$2 log=$3 begin=$SECONDS status
  shift 3
  [ "$limit" -gt "$(left)" ] && limit=$(left)
  if [ "$limit" -lt 5 ]; then
    note "SKIPPED  $name: no time left"
    return 1
  fi
  echo "== $*" >>"$log"
  timeout --signal="${STOP_BY:-TERM}" --kill-after=10 "$limit" "$@" >>"$log" 2>&1
  status=$?
  case $status in
    0) note "ok       $name ($((SECONDS - begin)) s)" ;;
    124 | 137) note "CUT OFF  $name after $limit s" ;;
    *) note "FAILED   $name with status $status ($((SECONDS - begin)) s)" ;;
  esac
  return $status
}

# What a rehearsal does otherwise: the CPU in place of the GPU.
if [ -n "$REHEARSE" ]; then
  rehearsal=(--rehearse)
  on_device="emulated"
  sanitizer() { shift && "$@"; }
  profiler() { shift && "$@" && echo "(no profile in a rehearsal)"; }
  describe_gpu() { echo "rehearsal: no GPU"; }
  architecture() { echo 9.0; }
else
  rehearsal=()
  on_device="cuda"
  sanitizer() {
    local tool=$1
    shift
    # Without the caching allocator every tensor is an allocation of its own, with its own bounds.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" \
      --kernel-regex kns=fastscore --error-exitcode 9 "$@"
  }
  profiler() {
    local metrics=$1
    shift
    ncu --clock-control none --csv --print-kernel-base demangled --kernel-name-base demangled \
      --kernel-name regex:fastscore --metrics "$metrics" "$@"
  }
  describe_gpu() {
    nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.max.sm,clocks.max.mem \
      --format=csv,noheader
  }
  architecture() {
    $PYTHON -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())'
  }
fi
export -f sanitizer profiler

note "fastscore GPU check, $(date -u +%Y-%m-%dT%H:%M:%SZ), $CORES cores, parts: $PARTS"
describe_gpu 2>&1 | tee -a "$OUT/summary.txt"
nvcc --version | tail -2 | head -1 | tee -a "$OUT/summary.txt"

# ---- build -------------------------------------------------------------------------------------

prebuilt() {
  local suffix
  suffix=$($PYTHON -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
  [ -n "${PREBUILT:-}" ] && [ -f "$PREBUILT/_C$suffix" ] && cp "$PREBUILT/_C$suffix" fastscore/ &&
    $PYTHON -m fastscore info >/dev/null
}

if prebuilt; then
  note "ok       the extension of $PREBUILT ($SECONDS s)"
else
  export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(architecture)} MAX_JOBS=${MAX_JOBS:-$CORES}
  [ -n "$REHEARSE" ] || export FASTSCORE_CUDA=1
  rm -f "$OUT/build.log"
  part "build for $TORCH_CUDA_ARCH_LIST" 240 "$OUT/build.log" \
    $PYTHON -m pip install --no-build-isolation --no-deps -v -e . ||
    { note "nothing to check" && exit 1; }
fi
$PYTHON -m fastscore info 2>&1 | tee -a "$OUT/summary.txt"

# ---- tests, and memcheck beside them -----------------------------------------------------------

# sanitize TOOL SECONDS
sanitize() {
  part "compute-sanitizer $1" "$2" "$SCRATCH/$1.log" \
    bash -c 'sanitizer "$@"' bash "$1" "$PYTHON" benchmarks/sanitize.py "${rehearsal[@]}"
}

# Adds a sanitizer's log to those that stay.
report() {
  [ -f "$SCRATCH/$1.log" ] || return
  { echo "==== $1" && tail -c 1000000 "$SCRATCH/$1.log"; } >>"$OUT/sanitizer.log"
  { grep -h "ERROR SUMMARY\|RACECHECK SUMMARY" "$SCRATCH/$1.log" || tail -1 "$SCRATCH/$1.log"; } |
    sed "s/^/$1: /" | tee -a "$OUT/summary.txt"
}

# test_part NAME SECONDS ARGUMENTS...: pytest, on several processes where pytest-xdist is there.
test_part() {
  local name=$1 limit=$2 count=${WORKERS:-6} workers=()
  shift 2
  $PYTHON -c 'import xdist' 2>/dev/null && workers=(-n "$count")
  STOP_BY=INT part "$name" "$limit" "$OUT/tests.log" \
    env OMP_NUM_THREADS=$(((CORES + count - 1) / count)) \
    $PYTHON -m pytest -v -p no:cacheprovider -rfE "${workers[@]}" "$@"
  local status=$?
  grep -a "passed\|failed" "$OUT/tests.log" | tail -1 | tee -a "$OUT/summary.txt"
  return $status
}

if wanted tests; then
  rm -f "$OUT"/{tests,sanitizer}.log
  sanitize memcheck 150 &
  test_part "tests on the GPU" 170 -m "$on_device" || failed=1
  wait $! || failed=1
  report memcheck
fi

# ---- measurements, alone on the machine --------------------------------------------------------

measure() {
  local name=$1 limit=$2
  rm -f "$OUT/gpu_$name.json" "$SCRATCH/$name.log"
  part "$name" "$limit" "$SCRATCH/$name.log" \
    $PYTHON benchmarks/gpu.py "$name" "$OUT" "${rehearsal[@]}" || failed=1
  cat "$SCRATCH/$name.log" >>"$OUT/benchmarks.log"
  sed -n '/^[^ ].*, torch .*, CUDA/,$p' "$SCRATCH/$name.log" | tee -a "$OUT/summary.txt"
}

{ wanted kernels && wanted jobs; } && rm -f "$OUT/benchmarks.log"
wanted kernels && measure kernels 150
wanted jobs && measure jobs 120

# ---- what else there is time for ---------------------------------------------------------------

METRICS=gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed
METRICS+=,sm__throughput.avg.pct_of_peak_sustained_elapsed,launch__registers_per_thread
METRICS+=,sm__warps_active.avg.pct_of_peak_sustained_active
METRICS+=,sm__inst_issued.avg.pct_of_peak_sustained_active
METRICS+=,sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active
METRICS+=,sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active
METRICS+=,sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active

if wanted profile; then
  rm -f "$OUT/profile.csv"
  part "profile" 60 "$OUT/profile.csv" bash -c 'profiler "$@"' bash "$METRICS" \
    "$PYTHON" benchmarks/profiled.py "${rehearsal[@]}" || failed=1
fi
if wanted sanitizers; then
  pids=()
  for tool in racecheck initcheck synccheck; do
    sanitize $tool 120 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || failed=1
  done
  for tool in racecheck initcheck synccheck; do report $tool; done
fi
if wanted large; then
  [ -n "$REHEARSE" ] || export FASTSCORE_TEST_LARGE=1
  WORKERS=1 test_part "tests of more than 2^31 elements" 90 -m "$on_device" -k "31_bits" || failed=1
fi
note "finished after $SECONDS s, $([ $failed = 0 ] && echo "all parts well" || echo "SOME PART FAILED")"
exit $failed
