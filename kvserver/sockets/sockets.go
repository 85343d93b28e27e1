// Package sockets opens the listening sockets of a member, or takes over those
// that systemd has opened.
package sockets

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Options of the sockets.
type Options struct {
	// ReusePort lets several processes listen on one port.
	ReusePort bool
	// Inherited are open already; those that are nil count for nothing. Who
	// listens on the address of one gets it; the rest is closed by Close.
	Inherited []net.Listener
}

// Sockets opens listening sockets.
type Sockets struct {
	options Options

	mu        sync.Mutex
	inherited []net.Listener
}

// New returns the opener of sockets.
func New(options Options) *Sockets {
	inherited := slices.DeleteFunc(slices.Clone(options.Inherited), func(listener net.Listener) bool { return listener == nil })
	return &Sockets{options: options, inherited: inherited}
}

// Listen is net.Listen for TCP.
func (s *Sockets) Listen(network, address string) (net.Listener, error) {
	if listener := s.inherit(network, address); listener != nil {
		return listener, nil
	}
	config := net.ListenConfig{}
	if s.options.ReusePort {
		config.Control = func(_, _ string, conn syscall.RawConn) error {
			var failed error
			err := conn.Control(func(fd uintptr) {
				failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) //nolint:gosec // a descriptor
			})
			return errors.Join(err, failed)
		}
	}
	return config.Listen(context.Background(), network, address)
}

// inherit returns the open socket that has the address.
func (s *Sockets) inherit(network, address string) net.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.inherited) == 0 {
		return nil
	}
	wanted, err := net.ResolveTCPAddr(network, address)
	if err != nil {
		return nil
	}
	at := slices.IndexFunc(s.inherited, func(listener net.Listener) bool {
		has, ok := listener.Addr().(*net.TCPAddr)
		return ok && has.Port == wanted.Port && (has.IP.Equal(wanted.IP) || everywhere(has.IP) && everywhere(wanted.IP))
	})
	if at < 0 {
		return nil
	}
	listener := s.inherited[at]
	s.inherited = slices.Delete(s.inherited, at, at+1)
	return listener
}

func everywhere(ip net.IP) bool { return len(ip) == 0 || ip.IsUnspecified() }

// Close closes the inherited sockets that nobody listened on, and says which
// they were.
func (s *Sockets) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, listener := range s.inherited {
		errs = append(errs, fmt.Errorf("the socket %s was handed over, but no URL listens there; change the socket unit or the --listen-... flags", listener.Addr()), listener.Close())
	}
	s.inherited = nil
	return errors.Join(errs...)
}
