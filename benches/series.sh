#!/bin/sh
# How long `GET /stats/series` takes: a day by the minute, and a year by the day, with 15 types in each minute of a year. The
# counts are put into the file by sqlite3, since they cost the same however many events they count.
#
#   benches/series.sh [PROGRAM]     by default target/release/event-pipeline
set -eu
program=$(realpath "${1:-target/release/event-pipeline}")
folder=$(mktemp -d)
port=18765
cd "$folder"
serve() {
    PORT=$port LOG_LEVEL=warn CHECK_AT_START=false "$program" serve &
    server=$!
    until "$program" health --port $port >/dev/null 2>&1; do sleep 0.1; done
}
trap 'kill $server 2>/dev/null || true; wait $server 2>/dev/null || true; rm -rf "$folder"' EXIT
serve
curl -s -o /dev/null -d '{"event_type":"timer_tick","source":"bench"}' -H 'Content-Type: application/json' \
    http://127.0.0.1:$port/events
kill $server
wait $server || true
sqlite3 data/events.db "
    WITH RECURSIVE minutes(minute) AS (
        SELECT unixepoch('2025-12-01') / 60 UNION ALL
        SELECT minute + 1 FROM minutes WHERE minute < unixepoch('2026-12-01') / 60 - 1),
    types(nth) AS (SELECT 1 UNION ALL SELECT nth + 1 FROM types WHERE nth < 15)
    INSERT INTO rollups SELECT minute, 'type_' || printf('%02d', nth), 4000 + nth FROM minutes, types;"
serve
measure() {
    for _ in $(seq "$2"); do
        curl -s -o answer -w '%{time_total}\n' "http://127.0.0.1:$port/stats/series?$3"
    done | sort -n | awk -v what="$1" '{ all[NR] = $1 * 1000 }
        END { printf "%-28s p50 %8.2f ms, p99 %8.2f ms, longest %8.2f ms, of %d\n",
            what, all[int((NR + 1) / 2)], all[int(NR * 0.99 + 0.5)], all[NR], NR }'
}
day='since=2026-06-01T00:00:00Z&until=2026-06-02T00:00:00Z&interval=1m'
measure "a day by the minute" 300 "$day"
measure "the same for each type" 100 "$day&group_by=event_type"
measure "a year by the day" 10 'since=2025-12-01T00:00:00Z&until=2026-12-01T00:00:00Z&interval=1d'
measure "an hour by 10 s" 100 'interval=10s'
