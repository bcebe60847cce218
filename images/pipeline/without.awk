# Drops the packages whose names match `provided` (a regular expression) from a lock file, hashes and all.
/^[A-Za-z0-9]/ { split($0, part, "=="); drop = provided != "" && part[1] ~ "^(" provided ")$" }
!drop
