module compression-operator/tests/cluster/pause

go 1.24.0
