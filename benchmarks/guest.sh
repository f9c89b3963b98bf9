# Use the disk with fio, as the host counts CPU time between BEGIN and END; then count notifications in a shorter run.
set -e
disk=$(disk)
echo none >/sys/block/${disk##*/}/queue/scheduler

use() { # kind, seconds, where fio's report goes
	fio --name="$1" --filename=$disk --rw="$1" --bs=4k --iodepth=32 --ioengine=libaio --direct=1 --norandommap \
		--time_based --runtime="$2" --randseed=7 --eta=never --output-format=json --output="$3"
}

read -r seconds </job/seconds
for kind in randread randwrite; do
	echo "BEGIN $kind"
	use $kind "$seconds" /out/$kind.json
	echo "END $kind"
done

tracing=/sys/kernel/tracing
mount -t tracefs tracefs $tracing
echo 'p:kick vp_notify' >$tracing/kprobe_events
echo 1 >$tracing/events/kprobes/kick/enable
for kind in randread randwrite; do
	read -r name before missed <$tracing/kprobe_profile
	use $kind 1 /out/counted-$kind.json
	read -r name after missed <$tracing/kprobe_profile
	echo $((after - before)) >/out/kicks-$kind
done
