// Package corruptionpb is how members compare what they store: see
// muster_corruption.proto.
package corruptionpb

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative muster_corruption.proto
