#!/usr/bin/env bash
# Chromium for the tests of the report's page, where it is missing and can be had. Never fails:
# without a browser those tests are skipped, and say so.
set -uo pipefail

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "==> no Chromium, and only root can install it: the report's page is not tested" >&2
    exit 0
fi
echo '==> Chromium, for the tests of the report'
{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium; } \
    >/dev/null 2>&1 || echo '    not to be had: the report'"'"'s page is not tested' >&2
exit 0
