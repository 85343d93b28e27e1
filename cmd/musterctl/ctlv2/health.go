package ctlv2

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/urfave/cli"
	"go.etcd.io/etcd/client/v2"
)

// checkInterval is how often cluster-health --forever looks.
const checkInterval = 10 * time.Second

func (s *session) healthCommand() cli.Command {
	return cli.Command{
		Name: "cluster-health", Usage: "check the health of the etcd cluster", ArgsUsage: " ",
		Flags:  []cli.Flag{cli.BoolFlag{Name: "forever, f", Usage: "forever check the health every 10 second until CTRL+C"}},
		Action: s.health,
	}
}

func (s *session) health(c *cli.Context) error {
	transport, err := s.transport(c)
	if err != nil {
		return s.failed(c, exitServerError, err)
	}
	connected, err := s.unsynced(c)
	if err != nil {
		return err
	}
	if c.GlobalBool("debug") {
		s.debug(true, "Cluster-Endpoints: %s\n", joined(connected.Endpoints()))
		client.EnablecURLDebug()
	}
	members, err := client.NewMembersAPI(connected).List(s.ctx)
	if err != nil {
		s.say("cluster may be unhealthy: failed to list members\n")
		return s.failed(c, exitServerError, err)
	}
	web := &http.Client{Transport: transport}
	for {
		healthy := 0
		for _, member := range members {
			if s.checkMember(web, member) {
				healthy++
			}
		}
		switch healthy {
		case len(members):
			s.say("cluster is healthy\n")
		case 0:
			s.say("cluster is unavailable\n")
		default:
			s.say("cluster is degraded\n")
		}
		if !c.Bool("forever") {
			if healthy < len(members) {
				return &Failure{Code: exitUnhealthy}
			}
			return nil
		}
		s.say("\nnext check after 10 second...\n\n")
		timer := time.NewTimer(checkInterval)
		select {
		case <-timer.C:
		case <-s.ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// checkMember asks a member, at one of its URLs after the other until there is
// an answer, whether it is healthy.
func (s *session) checkMember(web *http.Client, member client.Member) bool {
	if len(member.ClientURLs) == 0 {
		s.say("member %s is unreachable: no available published client urls\n", member.ID)
		return false
	}
	for _, url := range member.ClientURLs {
		healthy, err := s.askHealth(web, url)
		if err != nil {
			s.say("failed to check the health of member %s on %s: %v\n", member.ID, url, err)
			continue
		}
		if !healthy {
			s.say("member %s is unhealthy: got unhealthy result from %s\n", member.ID, url)
			return false
		}
		s.say("member %s is healthy: got healthy result from %s\n", member.ID, url)
		return true
	}
	s.say("member %s is unreachable: %v are all unreachable\n", member.ID, member.ClientURLs)
	return false
}

// maxHealth bounds an answer, in bytes.
const maxHealth = 1 << 20

func (s *session) askHealth(web *http.Client, url string) (bool, error) {
	request, err := http.NewRequestWithContext(s.ctx, http.MethodGet, url+"/health", nil)
	if err != nil {
		return false, err
	}
	resp, err := web.Do(request)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxHealth))
	if err != nil {
		return false, err
	}
	// Old servers say true, others "true".
	var answer struct{ Health any }
	if err := json.Unmarshal(body, &answer); err != nil {
		return false, err
	}
	return fmt.Sprint(answer.Health) == "true", nil
}
