// Package loopback hands out addresses for the servers of tests.
package loopback

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"
)

// Ports are below the range from which Linux takes those of outgoing
// connections, so that none is taken while a server is down.
const firstPort, lastPort = 10000, 32000

// Host is a loopback address of this process alone: tests of other packages,
// which run at the same time, take no port of it.
func Host() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 160+pid>>16&63, pid>>8&255, pid&255)
}

// Address returns a host:port on which nothing listens.
func Address(t testing.TB) string {
	t.Helper()
	for range 200 {
		address := fmt.Sprintf("%s:%d", Host(), firstPort+rand.IntN(lastPort-firstPort)) //nolint:gosec // any port will do
		listener, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
		return address
	}
	t.Fatalf("no free port on %s", Host())
	return ""
}
