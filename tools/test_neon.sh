#!/bin/bash
# Tests of the NEON kernels on a machine that is not AArch64: cross-compiled, run by an AArch64 Python under qemu.
#
#   tools/test_neon.sh FOLDER tests/kv/test_encoders.py tests/cpu/test_attend_codecs.py -k neon
#
# Needs Debian 12 with gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user, cmake, and a Python with its headers, pip and
# cffi. FOLDER keeps the build, the AArch64 Python and its packages for the next time; nothing is installed. What follows
# goes to pytest. Some twenty times slower than natively: choose tests.
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
version=3.11 # of Debian 12's Python

python_for_arm() { # Debian's packages, unpacked
    local apt=(-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o "Dir::Cache=$folder/apt"
        -o "Dir::State=$folder/apt" -o "Dir::State::status=$folder/apt/status")
    mkdir -p "$folder"/apt/lists/partial "$folder"/apt/archives/partial "$folder/debs" && touch "$folder/apt/status"
    apt-get "${apt[@]}" -q update
    (cd "$folder/debs" && apt-get "${apt[@]}" -q download python$version-minimal libpython$version-minimal \
        libpython$version-stdlib libc6 libssl3 zlib1g libexpat1 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 \
        libgcc-s1 libstdc++6)
    for package in "$folder"/debs/*.deb; do
        dpkg -x "$package" "$folder/root"
    done
    pip download -q -d "$folder/wheels" --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 \
        --python-version $version --only-binary=:all: numpy cffi pytest hypothesis gguf
    for wheel in "$folder"/wheels/*.whl; do
        python3 -m zipfile -e "$wheel" "$folder/site"
    done
}

[ -d "$folder/site" ] || python_for_arm

cmake -S "$source" -B "$folder/build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DPYKVQ_PYTHON=OFF -DPYKVQ_CUDA=OFF > "$folder/cmake.log"
cmake --build "$folder/build" --target kvq_core
python3 "$source/native/ffi_source.py" "$source/native/include/pykvq.h" "$folder/_native.c"
rm -rf "$folder/checkout" "$folder/site/pykvq" && mkdir "$folder/checkout"
cp -r "$source"/{native,pyproject.toml,tests} "$folder/checkout"
cp -r "$source/pykvq" "$folder/site/pykvq"
cp "$source/models/registry.json" "$folder/site/pykvq"
aarch64-linux-gnu-gcc -O1 -w -shared -fPIC "-I$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
    "-I$source/native/include" "$folder/_native.c" \
    -Wl,--whole-archive "$folder/build/libkvq_core.a" -Wl,--no-whole-archive -lm -lpthread -ldl \
    -o "$folder/site/pykvq/_native.abi3.so"
cd "$folder/checkout"
exec qemu-aarch64 -L "$folder/root" -E "PYTHONPATH=$folder/site" -E PYTHONDONTWRITEBYTECODE=1 \
    "$folder/root/usr/bin/python$version" -m pytest -p no:cacheprovider "$@"
