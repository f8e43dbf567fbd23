#!/bin/sh
# Handle events from a POSIX shell; nc does the socket.
#
#   sh examples/remote/serve.sh var/run/daemon.sock &
#   ksi call shell:uptime
socket=${1:-${KSI_SOCKET:-var/run/daemon.sock}}
folder=$(mktemp -d) && trap 'rm -r "$folder"' EXIT
mkfifo "$folder/out"

serve='{"event":"plugin:serve","id":"serve","data":{"name":"shell","events":[{"event":"shell:uptime",
"safe":true,"summary":"Tell how long the machine runs.","schema":{"type":"object"},
"reply":{"type":"object","properties":{"seconds":{"type":"integer"}},"required":["seconds"]}}]}}'

nc -U "$socket" <"$folder/out" | {
    exec 3>"$folder/out"
    printf '%s\n' "$serve" | tr -d '\n' >&3
    echo >&3
    while IFS= read -r line; do
        case $line in
        *'"type":"call"'*)
            id=${line#*'"id":"'}
            seconds=$(cut -d. -f1 /proc/uptime)
            printf '{"type":"reply","id":"%s","data":{"seconds":%s}}\n' "${id%%\"*}" "$seconds" >&3
            ;;
        *'"type":"item"'*) echo "serving shell:uptime" ;;
        *'"type":"error"'*) echo "$line" >&2; exit 1 ;;
        esac
    done
}
