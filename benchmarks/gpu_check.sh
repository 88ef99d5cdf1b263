#!/bin/bash
# Builds, tests, sanitizes and measures fastscore on a machine with a GPU, in one call of under nine
# minutes. Needs python3 with a CUDA build of torch, nvcc, compute-sanitizer and pytest; no network.
#
#   benchmarks/gpu_check.sh                results go to benchmarks/results/gpu
#   OUT=directory benchmarks/gpu_check.sh  ... to another directory
#
# Writes summary.txt, build.log, tests.log, sanitizer.log, benchmarks.log, gpu.json and
# family.tar.gz. Exits with 1 when any part failed; the parts after it run all the same.
#
#   PARTS="tests" benchmarks/gpu_check.sh    only some of: tests, sanitizers, benchmarks, suite
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results/gpu}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
BUDGET=525  # seconds for everything
PARTS=${PARTS:-tests sanitizers benchmarks suite}
export PYTHONUNBUFFERED=1
export FASTSCORE_TEST_EMULATED=none  # there is a device
CORES=$(nproc)

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

# What this run makes anew; parts that were run before keep theirs, and the summary goes on.
rm -f "$OUT/build.log"
wanted tests && rm -f "$OUT/tests.log"
wanted sanitizers && rm -f "$OUT/sanitizer.log"
wanted benchmarks && rm -f "$OUT"/{benchmarks.log,gpu.json}
wanted suite && rm -f "$OUT/family.tar.gz"
failed=0
note "fastscore GPU check, $(date -u +%Y-%m-%dT%H:%M:%SZ), $CORES cores"
nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.max.sm,clocks.max.mem \
  --format=csv,noheader 2>&1 | tee -a "$OUT/summary.txt"
nvcc --version | tail -2 | head -1 | tee -a "$OUT/summary.txt"

# ---- build -------------------------------------------------------------------------------------

export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(python3 -c \
  'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
export MAX_JOBS=${MAX_JOBS:-$CORES} FASTSCORE_CUDA=1
part "build for $TORCH_CUDA_ARCH_LIST" 240 "$OUT/build.log" \
  python3 -m pip install --no-build-isolation --no-deps -v -e . || { note "nothing to check"; exit 1; }
python3 -m fastscore info 2>&1 | tee -a "$OUT/summary.txt"

# ---- tests and sanitizers, at the same time ----------------------------------------------------

# How pytest shares out its tests, where pytest-xdist is installed.
workers() { python3 -c 'import xdist' 2>/dev/null && printf '%s ' "$@"; }

sanitize() {
  local tool=$1
  # Without the caching allocator every tensor is an allocation of its own, with its own bounds.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 part "compute-sanitizer $tool" 200 "$SCRATCH/$tool.log" \
    compute-sanitizer --tool "$tool" --kernel-regex kns=fastscore --error-exitcode 9 \
    python3 benchmarks/sanitize.py
}

pids=()
if wanted sanitizers; then
  for tool in memcheck racecheck initcheck synccheck; do
    (sanitize $tool) &
    pids+=($!)
  done
fi
if wanted tests; then
  (part "tests without a GPU" 260 "$SCRATCH/rest.log" env OMP_NUM_THREADS=1 \
    python3 -m pytest -m "not cuda" -p no:cacheprovider $(workers -n $((CORES > 6 ? CORES - 6 : 1)) --dist loadfile)) &
  pids+=($!)
  (FASTSCORE_TEST_LARGE=1 part "tests on the GPU" 260 "$SCRATCH/cuda.log" \
    python3 -m pytest -m cuda -p no:cacheprovider $(workers -n 4)) &
  pids+=($!)
fi
for pid in "${pids[@]}"; do
  wait "$pid" || failed=1
done
for log in cuda rest; do
  [ -f "$SCRATCH/$log.log" ] || continue
  echo "==== $log" >>"$OUT/tests.log"
  cat "$SCRATCH/$log.log" >>"$OUT/tests.log" 2>/dev/null
  tail -1 "$SCRATCH/$log.log" 2>/dev/null | tee -a "$OUT/summary.txt"
done
for tool in memcheck racecheck initcheck synccheck; do
  [ -f "$SCRATCH/$tool.log" ] || continue
  echo "==== $tool" >>"$OUT/sanitizer.log"
  tail -c 1000000 "$SCRATCH/$tool.log" >>"$OUT/sanitizer.log" 2>/dev/null
  grep -h "ERROR SUMMARY\|RACECHECK SUMMARY" "$SCRATCH/$tool.log" 2>/dev/null |
    sed "s/^/$tool: /" | tee -a "$OUT/summary.txt"
done

# ---- benchmarks, alone on the machine ----------------------------------------------------------

if wanted benchmarks; then
  part "benchmarks at GPU sizes" 240 "$OUT/benchmarks.log" python3 benchmarks/gpu.py "$OUT" || failed=1
  grep -A 30 "^NVIDIA.*torch" "$OUT/benchmarks.log" | tee -a "$OUT/summary.txt"
fi
# Whatever time is left goes to the suite that also runs on CPUs. Interrupted, it writes what it has.
if wanted suite && [ "$(left)" -gt 40 ]; then
  STOP_BY=INT part "benchmark suite, as far as time allows" "$(left)" "$OUT/benchmarks.log" \
    python3 -m pytest benchmarks -c benchmarks/pytest.ini --device cuda --out "$SCRATCH/family" \
    -k "langevin or dsm or sliced or dual or random" ||
    note "(a suite that is cut off is no failure)"
  [ -d "$SCRATCH/family" ] && tar -C "$SCRATCH" -czf "$OUT/family.tar.gz" family
fi
note "finished after $SECONDS s, $([ $failed = 0 ] && echo "all parts well" || echo "SOME PART FAILED")"
exit $failed
