#!/bin/busybox sh
# The first program of the guest. What it does beside printing the marker, the kernel's command
# line says: axvm.shell, axvm.reboot.

bb=/bin/busybox
$bb mount -t proc proc /proc
read -r words < /proc/cmdline
read -r uptime _ < /proc/uptime
cpus=$($bb grep -c ^processor /proc/cpuinfo)

echo "GUEST-MARKER $($bb uname -m) uptime=$uptime cpus=$cpus"

case " $words " in
*" axvm.shell "*)
    $bb mount -t devtmpfs dev /dev
    $bb mount -t sysfs sys /sys
    $bb --install -s /bin
    export PATH=/bin HOME=/ TERM=vt102 PS1='guest# '
    # A session with a terminal of its own, for Ctrl-C.
    setsid cttyhack sh
    ;;
*" axvm.reboot "*)
    # Nothing survives in memory: whoever types knows how often it came up.
    echo "REBOOT-OR-POWEROFF?"
    read -r answer
    case $answer in
    reboot) $bb reboot -f ;;
    esac
    ;;
esac
$bb poweroff -f
