// Package v2pb is how version 2's requests travel in the log, and how its tree
// lies in the store.
package v2pb

//go:generate protoc --go_out=. --go_opt=paths=source_relative muster_v2.proto
