# Build the debug kernel, inside an unpacked Debian: /build is a directory of the kit's, /usr/src has the source.
# What was built before is kept, so a build that was interrupted goes on where it was.
set -eu
cd /build
export KBUILD_BUILD_TIMESTAMP=@0 KBUILD_BUILD_USER=nodma KBUILD_BUILD_HOST=nodma
config=/build/debug-kernel.config
source=/build/linux-source-6.12

kbuild() { nice -n 10 make -C "$source" O=/build/out CC=gcc-14 HOSTCC=gcc-14 -j"$(nproc)" "$@"; }

if ! [ -e unpacked ]; then
	echo "  UNPACK  $source"
	rm -rf "$source"
	tar -xf "/usr/src/${source##*/}.tar.xz"
	touch unpacked
fi

kbuild tinyconfig >/build/config.log 2>&1 || { cat /build/config.log; exit 1; }
"$source/scripts/kconfig/merge_config.sh" -m -O out out/.config "$config" >/build/config.log
kbuild olddefconfig >>/build/config.log 2>&1 || { cat /build/config.log; exit 1; }

# An option that the kernel renamed, or whose conditions do not hold, would be lost without a word.
lost=0
while read -r line; do
	case $line in
	CONFIG_*) grep -qxF "$line" out/.config || { echo "not in the configuration: $line"; lost=1; } ;;
	"# CONFIG_"*) name=${line#\# } && ! grep -q "^${name%% *}=" out/.config || { echo "in the configuration: not '$line'"; lost=1; } ;;
	esac
done <"$config"
[ $lost = 0 ] || exit 1

kbuild bzImage modules
rm -rf kernel
mkdir -p kernel/headers kernel/modules
kbuild run-command KBUILD_RUN_COMMAND='$(srctree)/scripts/package/install-extmod-build /build/kernel/headers'
echo 'CC = gcc-14' >kernel/headers/.kernelvariables # the kit's Debian has no other name for it
cp out/arch/x86/boot/bzImage kernel/vmlinuz
cp out/.config kernel/config
cp out/modules.builtin kernel/modules/
cp out/include/config/kernel.release kernel/release
