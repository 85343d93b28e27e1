package step

import (
	"context"
	"fmt"
	"sync"
	"time"

	"muster/provision/observed"
	"muster/provision/remote"
)

// RestartMembers restarts the members that do not use what is installed now:
// one at a time, each only while the others are a majority without it, and
// the next only when it is ready again. Members that are not ready cannot be
// harmed and go first.
func RestartMembers(ctx context.Context, r *Run) error {
	var due []*Host
	for _, h := range r.Hosts {
		if h.restart {
			due = append(due, h)
		}
	}
	if len(due) == 0 {
		return nil
	}
	up := readyHosts(ctx, r)
	var sick, well []*Host
	for _, h := range due {
		if up[h] {
			well = append(well, h)
		} else {
			sick = append(sick, h)
		}
	}
	if err := restartTogether(ctx, sick); err != nil {
		return err
	}
	for _, h := range well {
		if err := restartOne(ctx, r, h); err != nil {
			return err
		}
	}
	return nil
}

// restartTogether restarts members that are not ready, then waits for them:
// they may need each other to become so.
func restartTogether(ctx context.Context, hosts []*Host) error {
	for _, do := range []func(context.Context, *Host) error{restartMember, awaitReady} {
		for _, h := range hosts {
			if err := do(ctx, h); err != nil {
				return &hostError{h.Name, err}
			}
		}
	}
	return nil
}

// restartOne restarts a member that is ready, once enough others are.
func restartOne(ctx context.Context, r *Run, h *Host) error {
	if err := awaitOthers(ctx, r, h); err != nil {
		return err
	}
	if err := restartMember(ctx, h); err != nil {
		return &hostError{h.Name, err}
	}
	if err := awaitReady(ctx, h); err != nil {
		return &hostError{h.Name, err}
	}
	return nil
}

// awaitOthers waits until the members other than h's are a majority by
// themselves. A cluster of two has no such majority: there, the other one
// must be ready.
func awaitOthers(ctx context.Context, r *Run, h *Host) error {
	ctx, cancel := context.WithTimeout(ctx, r.ReadyTimeout)
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	need := min(len(r.Hosts)/2+1, len(r.Hosts)-1)
	for {
		up := readyHosts(ctx, r)
		delete(up, h)
		if len(up) >= need {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("restarting the member on %s would leave %d ready members, and %d are needed; bring the others up first (muster status)", h.Name, len(up), need)
		case <-tick.C:
		}
	}
}

// restartMember stops the member, waits until it has, and has it started
// again: whatever answers from then on is the new process.
func restartMember(ctx context.Context, h *Host) error {
	unit := h.unit().Name
	err := h.changeByScript(ctx, "restarted "+unit, remote.Command{
		Label:  "restart " + unit,
		Script: `systemctl stop "$1" && rm -f ` + observed.RestartMark + ` && systemctl start --no-block "$1"`,
		Args:   []string{unit},
	})
	h.restart = h.restart && err != nil
	return err
}

// readyHosts asks every member once.
func readyHosts(ctx context.Context, r *Run) map[*Host]bool {
	var mu sync.Mutex
	up := map[*Host]bool{}
	var wg sync.WaitGroup
	for _, h := range r.Hosts {
		wg.Go(func() {
			client := httpClient(h)
			defer client.CloseIdleConnections()
			if ready(ctx, client, h.Want.Member.MetricsURL) == nil {
				mu.Lock()
				up[h] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return up
}
