# For scripts that check a running server with tools from outside. They set `program`.

say() { printf -- '-- %s\n' "$*"; }

# Starts the server with a recorded class in a database of its own, and sets `url`.
start() {
    folder=$(mktemp -d)
    touch "$folder/log"
    (cd "$folder" && exec env -i PATH="$PATH" HOST=127.0.0.1 PORT=0 LOG_FORMAT=json DURABILITY=off \
        "$program" serve 2>>"$folder/log") &
    server=$!
    trap stop EXIT
    # The end of the server also ends the wait. `tail` fails, because `sed` does not read to the end.
    address=$(tail --pid="$server" -n +1 -f "$folder/log" |
        sed -n '/"listening"/{s/.*"address":"\([^"]*\)".*/\1/p;q}' || true)
    if [ -z "$address" ]; then
        cat "$folder/log"
        exit 1
    fi
    url=http://$address
    "$program" replay data/classroom.ndjson --speed max --url "$url"
}

stop() {
    kill "$server" 2>/dev/null || true
    wait "$server" || true
    rm -rf "$folder"
}
