// Package clustertest runs members as real processes and takes them through
// faults while clients work. `make test-faults` runs it for many rounds, with
// the tests of the same hazards inside one process in package replica.
//
// The tests must fail when a protection is switched off by its build tag:
//
//	plant_unconfirmed_reads   reads without a round: the stopped leader answers
//	                          from its past within a few rounds here
//	plant_verifyleader        raft's VerifyLeader instead of the round: fails in
//	                          package replica; here it takes luck
//	plant_heartbeat_fastpath  heartbeats beside raft's main loop: a deposed leader
//	                          stamps an entry in package replica every time. Here
//	                          it went unnoticed for a hundred rounds, as at most
//	                          two batches are in flight and both slots are taken
//	                          when a busy leader stops
package clustertest
