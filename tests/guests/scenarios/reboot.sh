# Boots eleven times; each time writes and flushes a record, and reboots under I/O. A boot's number is that of the
# records it finds: nothing that was flushed is lost.
set -e
disk=$(disk)
stat=/sys/block/${disk##*/}/stat
record() { printf 'record %08d' $1; }
number=0
while [ "$(dd if=$disk bs=4096 skip=$number count=1 2>/dev/null | head -n 1)" = "$(record $number)" ]; do
	number=$((number + 1))
done
echo "REBOOT boot $number"
if [ $number = 10 ]; then
	echo $number >/out/boots
	exit
fi
{ record $number; echo; } | dd of=$disk bs=4096 seek=$number conv=sync,fsync,notrunc 2>/dev/null
echo "REBOOT record $number"
for job in 1 2; do
	(while dd if=/dev/urandom of=$disk bs=64k seek=1024 count=1024 oflag=direct conv=notrunc; do :; done) 2>/dev/null &
done
read -r x x x x before rest <$stat
while :; do
	read -r x x x x writes rest <$stat
	[ $writes -gt $((before + 20)) ] && break
done
reboot -f
read -r never </dev/console
