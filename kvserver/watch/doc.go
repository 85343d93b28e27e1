// Package watch tells clients what happens to keys. It knows watchers and
// revisions, and nothing of gRPC or the network.
//
// A watcher is synced or catching up. Synced watchers receive every revision
// as it becomes visible, from one goroutine that never waits for anybody: a
// watcher whose stream has no room is made to catch up instead. What a watcher
// that catches up has missed is read from the history, by the goroutine that
// reads the stream, at the pace of that stream. So a client that does not read
// costs a bounded amount of memory, and delays neither another client nor the
// state machine.
//
// A stream holds at most Options.StreamBytes twice, in what waits and in what
// was handed out, and as much again read from the history; one revision more
// than that when it is larger.
package watch
