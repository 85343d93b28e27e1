// Package clienttest runs etcd's own client packages against a cluster of three
// members in one process: locks, elections, transactions in software, leasing,
// mirrors, naming, namespaces and ordering, as their users use them.
package clienttest
