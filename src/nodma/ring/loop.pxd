cimport nodma.ring.release as release
