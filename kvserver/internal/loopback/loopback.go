// Package loopback hands out addresses for the servers of tests.
package loopback

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"sync/atomic"
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

// handedOut counts the ports of Host that were given.
var handedOut atomic.Int64

// Address returns a host:port on which nothing listens, another one each time. It
// finds out by connecting: a process that is just being started, by another test,
// would hold a listener for a moment after it was closed here.
func Address(t testing.TB) string {
	t.Helper()
	for range 200 {
		address := net.JoinHostPort(Host(), strconv.FormatInt(firstPort+handedOut.Add(1)%(lastPort-firstPort), 10))
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return address
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("no free port on %s", Host())
	return ""
}
