"""Everything that changes a cluster, behind one door: perform."""
