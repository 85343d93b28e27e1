package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"muster/kvserver/machine"
	"muster/kvserver/peerport"
)

// local is what a member has of its own, which its parts work with.
type local struct {
	config   Config
	identity Identity
	marking  sync.Mutex // held while the identity is changed
	logger   *slog.Logger

	machine    *machine.Machine
	log        *durableLog
	snapshots  *snapshots
	port       *peerport.Port
	transport  *transport
	peers      *peers
	leadership *leadership
	progress   *progress
	waiters    *waiters

	failed chan error
	ctx    context.Context
	stop   context.CancelFunc
	tasks  sync.WaitGroup
}

// Member is this member's id.
func (l *local) Member() uint64 { return uint64(l.identity.Member) }

// Cluster is the cluster's id.
func (l *local) Cluster() uint64 { return uint64(l.identity.Cluster) }

// mark changes what the data directory says of itself.
func (l *local) mark(change func(*Identity)) {
	l.marking.Lock()
	defer l.marking.Unlock()
	change(&l.identity)
	if err := l.identity.save(l.config.Dir); err != nil {
		l.fail(err)
	}
}

func (l *local) fail(err error) {
	select {
	case l.failed <- err:
	default:
	}
	l.stop()
}

func (l *local) stalled() bool {
	return l.log.stalled(time.Now()) > l.config.ElectionTimeout
}

// do runs a task until it returns, which it has to when the member stops.
func (l *local) do(task func(context.Context)) {
	l.tasks.Add(1)
	go func() {
		defer l.tasks.Done()
		task(l.ctx)
	}()
}

func (l *local) serve(server *grpc.Server, protocol peerport.Protocol) {
	go func() {
		if err := server.Serve(l.port.Listener(protocol)); err != nil && l.ctx.Err() == nil {
			l.fail(fmt.Errorf("serve %s: %w", protocol, err))
		}
	}()
}

// close releases what has been opened; raft must have stopped.
func (l *local) close() error {
	var errs []error
	if l.peers != nil {
		errs = append(errs, l.peers.close())
	}
	if l.transport != nil {
		errs = append(errs, l.transport.shut())
	}
	if l.port != nil {
		errs = append(errs, l.port.Close())
	}
	if l.log != nil {
		errs = append(errs, l.log.Close())
	}
	if l.machine != nil {
		errs = append(errs, l.machine.Close())
	}
	return errors.Join(errs...)
}
