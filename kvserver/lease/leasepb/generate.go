// Package leasepb is what members ask of the leader about leases: see
// muster_lease.proto.
package leasepb

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative muster_lease.proto
