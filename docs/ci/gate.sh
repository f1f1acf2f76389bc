#!/usr/bin/env bash
# The step of action.yml and of the GitLab example: runs the gate and hands its results to the CI system.
# Reads CONFIG, MODEL, BASELINE, DATA_ROOT, SLMC, ACTION_PATH; writes gate.json, gate.xml, gate.sarif beside the job's work.
# Ends as the gate does: 0 passed, 1 failed, 2 and above not judged.
set -uo pipefail

if [[ -z "${SLMC:-}" ]]; then
    cargo build --release --locked --manifest-path "$ACTION_PATH/Cargo.toml" || exit 3
    SLMC="$ACTION_PATH/target/release/slmc"
fi
arguments=(--json gate --config "$CONFIG" --cache .slmc-gate-cache
    --junit gate.xml --sarif gate.sarif --markdown "${GITHUB_STEP_SUMMARY:-gate.md}")
[[ -n "${MODEL:-}" ]] && arguments+=(--model "$MODEL")
[[ -n "${BASELINE:-}" ]] && arguments+=(--baseline "$BASELINE")
[[ -n "${DATA_ROOT:-}" ]] && arguments+=(--data-root "$DATA_ROOT")

rm -f gate.json gate.xml gate.sarif
"$SLMC" "${arguments[@]}" > gate.json
code=$?
case $code in
    0) verdict=pass ;;
    1) verdict=fail ;;
    *) verdict=error ;;
esac
if [[ -n "${GITHUB_OUTPUT:-}" ]]; then
    {
        echo "verdict=$verdict"
        echo "report=gate.json"
        echo "junit=gate.xml"
        echo "sarif=gate.sarif"
    } >> "$GITHUB_OUTPUT"
fi
exit $code
