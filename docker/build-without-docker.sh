#!/usr/bin/env bash
# Build the Dockerfile's targets cpu and release without Docker, a daemon or an image registry, and try what it built.
#
#   apt-get install buildah debootstrap
#   docker/build-without-docker.sh [WORK_DIRECTORY]
#
# Needs root, 6 GB of disk, and a Python of the base's minor version (3.11) with pip: its own configuration decides where
# wheels come from, a CPU build of torch among them. The images are built offline from those wheels.
#
# 1. a Debian base by debootstrap, 2. a folder of wheels, 3. two images: cpu, and release, without PyTorch and by hashes.
# Then, as UID 10001: --version, doctor and quickstart in the first; and in the second, on a read-only root, doctor and
# what is done with a finished run. Writes benchmarks/results/container.jsonl. Everything else stays in WORK_DIRECTORY
# (default: a folder in TMPDIR) and in buildah's storage; run again, the base and the wheels are reused.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly suite=bookworm
readonly base=localhost/gacq-deploy-base:$suite
readonly image=localhost/gacq-deploy
readonly work=${1:-${TMPDIR:-/tmp}/gacq-deploy-container}
readonly python=${PYTHON:-python3}
readonly uid=10001

say() { printf '\n== %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

[[ $EUID -eq 0 ]] || fail "chroot isolation needs root"
for tool in buildah debootstrap; do
    command -v "$tool" >/dev/null || fail "$tool is missing: apt-get install $tool"
done
"$python" -m pip --version >/dev/null || fail "$python has no pip; set PYTHON to one that has"
mkdir -p "$work"/{wheels,data,times,said}

timed() { # NAME COMMAND...: run, and keep the seconds
    local name=$1 start=$EPOCHREALTIME
    shift
    "$@" || fail "$name failed"
    "$python" -c 'import sys; print(f"{float(sys.argv[2]) - float(sys.argv[1]):.1f}")' "$start" "$EPOCHREALTIME" \
        >"$work/times/$name"
}

make_base() {
    rm -rf "$work/root"
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$work/root" \
        >"$work/debootstrap.log"
    local container
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$work/root" / >/dev/null
    buildah commit --quiet --rm "$container" "$base" >/dev/null
    rm -rf "$work/root"
}

gather_wheels() {
    "$python" -m pip wheel --quiet --constraint constraints.txt --wheel-dir "$work/wheels" \
        torch==2.13.0 hatchling '.[cpu,calibrate,sign]'
    rm -f "$work"/wheels/gacq_deploy-*.whl # the Dockerfile makes it
}

build() { # TARGET BASE
    buildah bud --quiet --isolation chroot --network host --pull-never --format docker \
        --volume "$work/wheels:/wheels:ro" \
        --build-arg PYTHON_IMAGE="$2" \
        --build-arg PIP_FLAGS="--no-index --find-links /wheels" \
        --target "$1" --tag "$image:$1" . >"$work/build-$1.log" 2>&1 || { tail -n 30 "$work/build-$1.log" >&2; return 1; }
}

inside() { # CONTAINER ARGUMENTS...: gacq-deploy as the image would run it
    local container=$1
    shift
    buildah run --isolation chroot --user "$uid:$uid" --volume "$work/data:/data" "$container" -- gacq-deploy "$@"
}

inside_read_only() { # CONTAINER ARGUMENTS...: the same on a read-only root, with /data the one place to write
    local root
    root=$(buildah mount "$1")
    shift
    # the inner shell expands these
    # shellcheck disable=SC2016
    env root="$root" data="$work/data" uid="$uid" unshare --mount --pid --fork bash -euc '
        mount --bind "$root" "$root"
        mount -o remount,ro,bind "$root"
        mount --bind "$data" "$root/data"
        mount -t proc proc "$root/proc"
        mount --bind /dev "$root/dev"
        exec chroot --userspec="$uid:$uid" "$root" /usr/bin/env --ignore-environment --chdir=/data \
            PATH=/opt/gacq-deploy/bin:/usr/bin:/bin HOME=/data TMPDIR=/data PYTHONDONTWRITEBYTECODE=1 gacq-deploy "$@"
    ' gacq-deploy "$@"
}

strangers() { # CONTAINER: files that the unprivileged user left anywhere but in /data
    local root
    root=$(buildah mount "$1")
    find "$root" -xdev -uid "$uid" -not -path "$root/data" -print
}

buildah inspect "$base" >/dev/null 2>&1 || { say "Debian $suite base"; timed base make_base; }
say "wheels"
timed wheels gather_wheels
say "image with calibrate"
timed build build cpu "$base"
say "release"
! build release "$base" 2>"$work/said/refused" || fail "a release was built on a base without a digest"
grep -q "known by its digest" "$work/said/refused" || fail "the release failed for another reason: $(<"$work/said/refused")"
timed build-release build release "${base%:*}@$(buildah images --format '{{.Digest}}' "$base")"

say "tried as UID $uid"
rm -rf "$work/data"
install --directory --owner "$uid" --group "$uid" "$work/data"
full=$(buildah from --pull-never "$image:cpu")
release=$(buildah from --pull-never "$image:release")
trap 'buildah rm "$full" "$release" >/dev/null' EXIT
# buildah would put a volume of its own over the one given to it
buildah config --volume /data- "$full"
buildah config --volume /data- "$release"

inside "$full" --version | tee "$work/said/version" >&2
timed doctor inside "$full" doctor --json >"$work/said/doctor.json"
timed quickstart inside "$full" quickstart --preset ci --json -o /data/quickstart >"$work/said/quickstart.json"
[[ -z $(strangers "$full") ]] || fail "written outside /data: $(strangers "$full")"
for arguments in "doctor" "verify /data/quickstart" "parity /data/quickstart" \
    "run /data/quickstart -n 4 --seed 0 -o /data/images.png"; do
    # words on purpose
    # shellcheck disable=SC2086
    timed "release-${arguments%% *}" inside_read_only "$release" $arguments --json >"$work/said/release-${arguments%% *}.json"
done
[[ -s $work/data/images.png ]] || fail "no images were made"

say "result"
for tag in cpu release; do
    buildah images --json "$image:$tag" >"$work/said/image-$tag.json"
done
buildah images --json "$base" >"$work/said/image-base.json"
du --summarize --bytes "$(buildah mount "$full")" | cut -f1 >"$work/said/bytes-cpu"
du --summarize --bytes "$(buildah mount "$release")" | cut -f1 >"$work/said/bytes-release"
"$python" docker/record.py "$work" benchmarks/results/container.jsonl
