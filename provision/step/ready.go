package step

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"muster/provision/observed"
	"muster/provision/remote"
	"muster/provision/runner"
)

const (
	// readyPath asks a member whether it serves. That a learner has no vote is
	// no reason to wait.
	readyPath = "/readyz?exclude=non_learner"
	// sealedPath is readyPath for a cluster that refuses writes on purpose.
	sealedPath = readyPath + "&exclude=data_corruption"
	// readyPoll is the time between two questions to one member.
	readyPoll = 100 * time.Millisecond
	// unitPoll is the time between two looks at a unit that is not ready.
	unitPoll = time.Second
	// crashLimit is how many restarts by systemd mean that a member will not
	// come up.
	crashLimit = 3
)

// AwaitReady waits until every member says that it is ready, but for those that
// have yet to join. A member that keeps crashing ends the wait at once.
func AwaitReady(ctx context.Context, r *Run) error {
	return r.forAll(func(h *Host) *Error {
		if h.joins {
			return nil
		}
		if err := awaitReady(ctx, h); err != nil {
			return &Error{Step: h.step, Host: h.Name, Err: err}
		}
		return nil
	})
}

func awaitReady(ctx context.Context, h *Host) error {
	ctx, cancel := context.WithTimeout(ctx, h.run.ReadyTimeout)
	defer cancel()
	client := httpClient(h)
	defer client.CloseIdleConnections()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	nextLook := time.Now().Add(unitPoll)
	for {
		err := ready(ctx, client, h.readyURL())
		if err == nil {
			return nil
		}
		if errors.Is(err, remote.ErrConnectionLost) {
			return err
		}
		if time.Now().After(nextLook) {
			nextLook = time.Now().Add(unitPoll)
			if err := checkUnit(ctx, h); err != nil {
				return err
			}
		}
		select {
		case <-h.Remote.Lost():
			return fmt.Errorf("%s: wait for the member: %w", h.Name, remote.ErrConnectionLost)
		case <-ctx.Done():
			return fmt.Errorf("%s: the member was not ready within %v (--timeout): %w; see %s there", h.Name, h.run.ReadyTimeout, err, h.unit().Journal())
		case <-tick.C:
		}
	}
}

func (h *Host) readyURL() string {
	if h.run.sealed {
		return h.Want.Member.MetricsURL + sealedPath
	}
	return h.Want.Member.MetricsURL + readyPath
}

// httpClient speaks HTTP as seen from the host.
func httpClient(h *Host) *http.Client {
	return &http.Client{
		Transport: &http.Transport{DialContext: h.Remote.DialContext},
		Timeout:   5 * time.Second,
	}
}

// ready asks a member once whether it is ready to serve.
func ready(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close() //nolint:errcheck // nothing is lost
	body, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz says %s: %s", response.Status, strings.Join(strings.Fields(string(body)), " "))
	}
	return nil
}

// checkUnit returns an error when systemd has given up on the unit, or will.
func checkUnit(ctx context.Context, h *Host) error {
	unit, err := unitFact(ctx, h)
	if err != nil {
		return err
	}
	switch {
	case unit.Active == "failed" || unit.Active == "inactive":
		return fmt.Errorf("%s: %s is %s%s", h.Name, h.unit().Title(), unit.Active, h.result(unit))
	case unit.Restarts-h.Facts.Unit.Restarts >= crashLimit:
		return fmt.Errorf("%s: %s ended and was restarted %d times%s", h.Name, h.unit().Title(), unit.Restarts-h.Facts.Unit.Restarts, h.result(unit))
	}
	return nil
}

// result is how the unit ended, as far as who runs it says that.
func (h *Host) result(unit observed.UnitFact) string {
	if h.unit().IsPod() {
		return ""
	}
	return " (" + unit.Result + ")"
}

func unitFact(ctx context.Context, h *Host) (observed.UnitFact, error) {
	result, err := h.Remote.Run(ctx, remote.Command{
		Label:     "look at " + h.unit().Title(),
		Functions: runner.Functions(h.Want), Script: "unit_facts",
	})
	if err != nil {
		return observed.UnitFact{}, err
	}
	var u observed.UnitFact
	for _, line := range strings.Split(result.Stdout, "\n") {
		u.Set(line)
	}
	return u, nil
}
