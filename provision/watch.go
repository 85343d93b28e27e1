package provision

import (
	"context"
	"errors"
	"time"

	"muster/provision/inventory"
	"muster/provision/remote"
	"muster/provision/step"
)

// WatchStatus calls emit with the status now and again every interval, until
// the context ends or emit returns an error. The connections to the hosts stay
// open meanwhile, and are made again when they are lost. It returns nil when
// the context ends.
func WatchStatus(ctx context.Context, cluster *inventory.Cluster, o Options, interval time.Duration, emit func(*Status) error) error {
	o = o.withDefaults()
	r, unreachable, err := beginAsking(ctx, "status", cluster, o)
	if err != nil {
		return err
	}
	defer finish(r)
	redials := make([]redial, len(r.Hosts))
	defer func() {
		for i := range redials {
			redials[i].end()
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		for i, h := range r.Hosts {
			redials[i].keep(ctx, h, &unreachable[i])
		}
		status := survey(ctx, r, connected)
		if ctx.Err() != nil {
			return nil
		}
		status.unreached(unreachable)
		if err := emit(&status); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// redial makes a host's connection again, while the others are asked.
type redial struct{ dialled chan dialResult }

type dialResult struct {
	conn *remote.Host
	err  error
}

var errReconnecting = errors.New("the connection was lost; connecting again")

// keep takes over a connection that was made, or begins to make one when there
// is none. The error is what is known of the host's.
func (d *redial) keep(ctx context.Context, h *step.Host, unreachable *error) {
	if d.dialled != nil {
		select {
		case result := <-d.dialled:
			h.Remote, *unreachable, d.dialled = result.conn, result.err, nil
		default:
		}
		return
	}
	if h.Remote != nil {
		select {
		case <-h.Remote.Lost():
			_ = h.Remote.Close() // it is gone already
			h.Remote, *unreachable = nil, errReconnecting
		default:
			return
		}
	}
	dialled := make(chan dialResult, 1)
	d.dialled = dialled
	go func() {
		conn, err := h.Dial(ctx)
		dialled <- dialResult{conn, err}
	}()
}

// end waits for a connection that is being made, and closes it.
func (d *redial) end() {
	if d.dialled == nil {
		return
	}
	if result := <-d.dialled; result.conn != nil {
		_ = result.conn.Close() // nobody needs it any more
	}
}
