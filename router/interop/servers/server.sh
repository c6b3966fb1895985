# The frame of the server scripts, which source it: start, stop, status.
#
#   start   starts the server, waits until it listens, prints host:port
#   stop    ends what start started, and waits for the end
#   status  prints host:port and succeeds if the server runs
#
# Environment:
#
#   SERVER_DIR       directory of this server alone: configuration, log, state
#   SERVER_LISTEN    address to listen at            (127.0.0.1)
#   SERVER_PORT      port to listen at               (a free one)
#   SERVER_EXTERNAL  addresses for what goes out     (the server's choice)
#   SERVER_USER      user and password that clients  (anybody)
#   SERVER_PASSWORD  must have
#   SERVER_CONFIG    more configuration, as the script says
#
# A script that sources this defines "launch PORT", which starts the server with
# "background" and returns at once, and may define "check".

set -eu
PATH=$PATH:/usr/sbin:/sbin # where Debian keeps servers

dir=${SERVER_DIR:?must be the directory of this server}
listen=${SERVER_LISTEN:-127.0.0.1}
external=${SERVER_EXTERNAL:-}
user=${SERVER_USER:-}
password=${SERVER_PASSWORD:-}
config=${SERVER_CONFIG:-}

die() {
	echo "$(basename "$0"): $*" >&2
	exit 1
}

# need PROGRAM PACKAGE
need() {
	command -v "$1" >/dev/null || die "no $1 here: install the Debian package $2"
}

check() { :; }

# random_port prints a port below those that Linux gives to clients by itself.
random_port() {
	echo $((20000 + $(od -An -N2 -tu2 /dev/urandom) % 12000))
}

# bracketed ADDRESS prints an address as it stands before a port.
bracketed() {
	case $1 in
	*:*) echo "[$1]" ;;
	*) echo "$1" ;;
	esac
}

# born PID prints when a process began, so that its number is not mistaken for
# that of a later one; nothing if it has ended, be it waited for or not.
born() {
	awk '$3 != "Z" { print $22 }' "/proc/$1/stat" 2>/dev/null
}

# background COMMAND ARG... starts a process that stop ends.
background() {
	"$@" </dev/null >>"$dir/log" 2>&1 &
	echo "$! $(born $!)" >>"$dir/pids"
}

# runs PID WHEN succeeds if the process still runs. One that had ended before it was
# asked when it began has no WHEN.
runs() {
	[ -n "$2" ] && [ "$(born "$1")" = "$2" ]
}

# alive succeeds if every process that was started runs.
alive() {
	[ -s "$dir/pids" ] || return 1
	while read -r pid when; do
		runs "$pid" "$when" || return 1
	done <"$dir/pids"
}

# listens PORT succeeds if one of our processes listens there.
listens() {
	inodes=$(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
		awk -v port="$(printf ':%04X' "$1")" '$4 == "0A" && $2 ~ port "$" { print $10 }')
	for inode in $inodes; do
		while read -r pid when; do
			if ls -l "/proc/$pid/fd" 2>/dev/null | grep -q "socket:\[$inode\]"; then
				return 0
			fi
		done <"$dir/pids"
	done
	return 1
}

# await PORT waits until one of our processes listens there, or none is left to.
await() {
	tries=200
	while [ $tries -gt 0 ] && alive; do
		listens "$1" && return 0
		sleep 0.05
		tries=$((tries - 1))
	done
	return 1
}

finish() {
	[ -f "$dir/pids" ] || return 0
	# The last that was started ends first.
	sed '1!G;h;$!d' "$dir/pids" >"$dir/ending"
	while read -r pid when; do
		tries=100
		while runs "$pid" "$when"; do
			if [ $tries -gt 0 ]; then
				kill "$pid" 2>/dev/null || true
			else
				kill -KILL "$pid" 2>/dev/null || true
			fi
			sleep 0.05
			tries=$((tries - 1))
		done
	done <"$dir/ending"
	rm -f "$dir/pids" "$dir/ending" "$dir/address"
}

status() {
	alive && cat "$dir/address" 2>/dev/null
}

start() {
	status && return
	check
	mkdir -p "$dir"
	finish
	: >"$dir/log"
	for try in 1 2 3 4 5; do
		port=${SERVER_PORT:-$(random_port)}
		launch "$port"
		if await "$port"; then
			echo "$(bracketed "$listen"):$port" >"$dir/address"
			cat "$dir/address"
			return
		fi
		echo "attempt $try, port $port: did not come up" >>"$dir/log"
		finish
	done
	cat "$dir/log" >&2
	die "does not start"
}

main() {
	case ${1:-} in
	start) start ;;
	stop) finish ;;
	status) status ;;
	*) die "usage: $(basename "$0") start|stop|status" ;;
	esac
}
