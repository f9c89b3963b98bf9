cimport nodma.ring.without_gil as without_gil
