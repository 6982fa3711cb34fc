#!/usr/bin/env bash
# Make dist/Qwen3Chat.app: the app, a Python of its own, mlx-qwen3 in that, signed inside out.
#
#   ./bundle.sh                                        signed ad hoc: for this Mac alone
#   IDENTITY='Developer ID Application: ...' ./bundle.sh
#   IDENTITY=... NOTARY_PROFILE=NAME ./bundle.sh       also notarised, stapled and zipped
#
# Needs a Mac with Xcode's command line tools and uv. README.md says why each step is there.
set -euo pipefail
cd "$(dirname "$0")"

identity=${IDENTITY:--}
profile=${NOTARY_PROFILE:-}
version=3.13
app=dist/Qwen3Chat.app
runtime=$app/Contents/Resources/runtime
export MACOSX_DEPLOYMENT_TARGET=14.0

assemble() {
    swift build -c release --product Qwen3Chat
    rm -rf dist
    mkdir -p "$app/Contents/MacOS" "$app/Contents/Resources"
    cp "$(swift build -c release --show-bin-path)/Qwen3Chat" "$app/Contents/MacOS/"
    cp bundle/Info.plist "$app/Contents/"
}

add_python() {
    local python
    export UV_PYTHON_INSTALL_DIR=$PWD/.build/python
    uv python install "$version" --no-bin
    python=$(uv python find "$version" --managed-python --no-project --resolve-links)
    ditto "${python%/bin/*}" "$runtime"
}

# Into the interpreter itself: a virtual environment names the place it was made at. Wheels for the
# oldest macOS, not for this one: MLX has one for each.
add_packages() {
    uv pip install --python "$runtime/bin/python3" --break-system-packages \
        --python-platform aarch64-apple-darwin --link-mode copy \
        --excludes bundle/not-needed.txt ../..
}

prune() {
    local lib=$runtime/lib/python$version
    find "$runtime/bin" -mindepth 1 ! -name 'python3*' -delete
    find "$runtime/bin" -name '*-config' -delete
    rm -rf "$runtime/include" "$runtime/share" "$runtime"/lib/{tcl,tk,itcl,thread}*
    rm -rf "$lib"/{test,idlelib,tkinter,turtledemo,ensurepip}
}

# Now or never: once signed, nothing may write there. Unchecked, since copying changes file times.
compile() {
    find "$runtime" -name __pycache__ -prune -exec rm -rf {} +
    "$runtime/bin/python3" -I -m compileall -q --invalidation-mode unchecked-hash "$runtime/lib"
}

# Before it is signed for the sandbox: then it runs inside the app only.
try_it() {
    "$runtime/bin/python3" -I -B -m mlx_qwen3.cli generate 'What is 27 + 58?' --model demo
}

sign() {
    local options=(--force --sign "$identity")
    # Without a team all libraries are strangers, which the hardened runtime does not load.
    [ "$identity" = - ] || options+=(--options runtime --timestamp)
    find "$runtime" -type f \( -name '*.so' -o -name '*.dylib' \) -print0 |
        xargs -0 codesign "${options[@]}"
    codesign "${options[@]}" --entitlements bundle/python.entitlements "$runtime/bin/python$version"
    codesign "${options[@]}" --entitlements bundle/app.entitlements "$app"
    codesign --verify --deep --strict "$app"
}

notarise() {
    local archive=dist/Qwen3Chat.zip
    ditto -c -k --keepParent "$app" "$archive"
    xcrun notarytool submit "$archive" --keychain-profile "$profile" --wait
    xcrun stapler staple "$app"
    ditto -c -k --keepParent "$app" "$archive"
}

assemble
add_python
add_packages
prune
compile
try_it
sign
[ -z "$profile" ] || notarise
du -sh "$app"
