#!/bin/sh
# Turns flannel's subnet.env into a file of environment variables with options
# for dockerd. Needs a POSIX shell, sed and, to look for a conflict, ip.

usage() {
	cat >&2 <<END
$0 [-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]

Writes options for dockerd that fit the node's flannel subnet.
	-f	file to read (default: /run/flannel/subnet.env; may be absent)
	-d	file to write (default: /run/docker_opts.env)
	-i	write a variable for each option, such as DOCKER_OPT_MTU
	-c	write one variable with all options; without -i and -c: both
	-k	name of that one variable (default: DOCKER_OPTS); the value that it
		has in the environment goes first
	-m	leave --ip-masq out
END
	exit 1
}

fail() {
	echo "$1" >&2
	exit 1
}

# Unlikely names: subnet.env is read into this shell.
mk_source=/run/flannel/subnet.env
mk_target=/run/docker_opts.env
mk_key=DOCKER_OPTS
mk_single=no
mk_combined=no
mk_masq=yes

while getopts 'f:d:icmk:?h' mk_option; do
	case $mk_option in
	f) mk_source=$OPTARG ;;
	d) mk_target=$OPTARG ;;
	i) mk_single=yes ;;
	c) mk_combined=yes ;;
	m) mk_masq=no ;;
	k) mk_key=$OPTARG ;;
	*) usage ;;
	esac
done
if [ $mk_single$mk_combined = nono ]; then
	mk_single=yes
	mk_combined=yes
fi
case $mk_key in
'' | [0-9]* | *[!A-Za-z0-9_]*) fail "$0: -k $mk_key: not the name of a variable" ;;
esac

if [ -f "$mk_source" ]; then
	# The dot looks for a bare name in PATH.
	case $mk_source in
	*/*) . "$mk_source" ;;
	*) . "./$mk_source" ;;
	esac
fi

[ -z "$FLANNEL_SUBNET" ] || DOCKER_OPT_BIP=--bip=$FLANNEL_SUBNET
[ -z "$FLANNEL_MTU" ] || DOCKER_OPT_MTU=--mtu=$FLANNEL_MTU
if [ $mk_masq = yes ]; then
	# One of the two masquerades, never both.
	case $FLANNEL_IPMASQ in
	'') ;;
	true) DOCKER_OPT_IPMASQ=--ip-masq=false ;;
	false) DOCKER_OPT_IPMASQ=--ip-masq=true ;;
	*) fail "Invalid value of FLANNEL_IPMASQ: $FLANNEL_IPMASQ" ;;
	esac
fi

eval "mk_all=\$$mk_key"
[ -z "$mk_all" ] || mk_all="$mk_all "
mk_text=
# Also those that the environment or subnet.env brings along.
for mk_name in $(set | sed -n 's/^\(DOCKER_OPT_[A-Za-z0-9_]*\)=.*/\1/p'); do
	eval "mk_value=\$$mk_name"
	mk_all="$mk_all $mk_value"
	[ $mk_single = no ] || mk_text="$mk_text$mk_name=\"$mk_value\"
"
done
[ $mk_combined = no ] || mk_text="$mk_text$mk_key=\"$mk_all\"
"

# Whole or not at all: on a full disk what was there stays. What is no plain file (a link,
# a pipe), or is in a directory that only it can be written in, is written as it is.
put() {
	case $mk_target in
	*/*) mk_folder=${mk_target%/*}/ ;;
	*) mk_folder=./ ;;
	esac
	if [ -h "$mk_target" ] || [ ! -w "$mk_folder" ] ||
		{ [ -e "$mk_target" ] && [ ! -f "$mk_target" ]; }; then
		printf '%s' "$mk_text" >"$mk_target"
		return
	fi
	mk_new=$mk_folder.${mk_target##*/}.$$
	rm -f "$mk_new"
	# Nobody else's file or link.
	(set -C && : >"$mk_new") || return
	# With its mode and owner.
	if { [ ! -e "$mk_target" ] || cp -p "$mk_target" "$mk_new"; } &&
		printf '%s' "$mk_text" >"$mk_new" && whole "$mk_new"; then
		# A file that is a mount of its own cannot be replaced.
		mv -f "$mk_new" "$mk_target" 2>/dev/null && return
		printf '%s' "$mk_text" >"$mk_target"
	else
		false
	fi
	mk_status=$?
	rm -f "$mk_new"
	return $mk_status
}

# Not every shell's printf says that the disk is full.
whole() {
	[ "$(cat "$1")" = "$(printf '%s' "$mk_text")" ] || {
		echo "$0: $mk_target: not written: is the disk full?" >&2
		return 1
	}
}

put || exit 1

# A route to the subnet by way of another machine would win over docker's
# bridge, or make dockerd refuse to start.
[ -n "$FLANNEL_SUBNET" ] || exit 0
mk_address=${FLANNEL_SUBNET%/*}
mk_host=${mk_address##*.}
mk_subnet=${mk_address%.*}.$((mk_host - 1))/${FLANNEL_SUBNET#*/}
mk_pattern=$(printf '%s' "$mk_subnet" | sed 's,[./],\\&,g')
mk_route=$(ip route show | sed -n "/^$mk_pattern .*via/p")
[ -z "$mk_route" ] || fail "Your routing table already contains the subnet: $mk_route"
