package provision

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"
	"time"

	"muster/pki"
	"muster/provision/inventory"
	"muster/provision/member"
	"muster/provision/remote"
	"muster/provision/runner"
	"muster/provision/step"
)

// Status is the state of a cluster as its members see it. Its JSON form is
// stable.
type Status struct {
	Cluster string `json:"cluster"`
	// ClusterID and Leader are hexadecimal, as etcd prints IDs; empty when
	// no member answered.
	ClusterID string         `json:"clusterID"`
	Leader    string         `json:"leader"`
	Healthy   bool           `json:"healthy"`
	Members   []MemberStatus `json:"members"`
	// Problem says why the cluster as a whole is not healthy.
	Problem string `json:"problem,omitempty"`
}

// MemberStatus is one member of the inventory.
type MemberStatus struct {
	Name     string `json:"name"`
	ID       string `json:"id,omitempty"` // hexadecimal
	Endpoint string `json:"endpoint"`
	Version  string `json:"version,omitempty"`
	Leader   bool   `json:"leader"`
	Learner  bool   `json:"learner"`
	// DBSize is in bytes.
	DBSize    int64  `json:"dbSize"`
	RaftTerm  uint64 `json:"raftTerm"`
	RaftIndex uint64 `json:"raftIndex"`
	Healthy   bool   `json:"healthy"`
	// CertificateExpires is the end of the certificate the member serves
	// with; zero when it does not answer.
	CertificateExpires time.Time `json:"certificateExpires,omitzero"`
	// Problem says why the member is not healthy.
	Problem string `json:"problem,omitempty"`
}

// lookTimeout bounds the questions to one member.
const lookTimeout = 5 * time.Second

// GetStatus asks every member of the inventory. A host that is down is a
// member with a problem, not an error: an error means that nothing could be
// asked.
func GetStatus(ctx context.Context, cluster *inventory.Cluster, o Options) (*Status, error) {
	o = o.withDefaults()
	r, unreachable, err := beginAsking(ctx, "status", cluster, o)
	if err != nil {
		return nil, err
	}
	defer finish(r)
	status := survey(ctx, r, connected)
	status.unreached(unreachable)
	return &status, nil
}

// unreached says of whom the hosts are out of reach, and why.
func (s *Status) unreached(errs []error) {
	for i, err := range errs {
		if err != nil {
			s.Members[i].Problem = "host not reached: " + err.Error()
		}
	}
}

func connected(h *step.Host) bool { return h.Remote != nil }

// survey asks the members of the hosts that are to be asked, which must be
// connected.
func survey(ctx context.Context, r *step.Run, ask func(*step.Host) bool) Status {
	s := blank(r)
	views := make([]member.View, len(r.Hosts))
	var wg sync.WaitGroup
	for i, h := range r.Hosts {
		if ask(h) {
			wg.Go(func() { views[i] = s.Members[i].look(ctx, h, r.Bundle) })
		}
	}
	wg.Wait()
	s.judge(r.Expected(), views)
	return s
}

// verified is the status of a cluster that has just been verified.
func verified(r *step.Run) Status {
	s := blank(r)
	views := make([]member.View, len(r.Hosts))
	for i, h := range r.Hosts {
		views[i] = r.Views[h.Name]
		s.Members[i].fill(views[i])
		s.Members[i].CertificateExpires = expiry(r.Bundle.Hosts[h.Name].Server)
	}
	s.judge(r.Expected(), views)
	return s
}

func blank(r *step.Run) Status {
	s := Status{Cluster: r.Cluster.Name, Members: make([]MemberStatus, len(r.Hosts))}
	for i, h := range r.Hosts {
		s.Members[i] = MemberStatus{Name: h.Name, Endpoint: h.Want.Member.ClientURL}
	}
	return s
}

// look asks the member and fills in what it says.
func (m *MemberStatus) look(ctx context.Context, h *step.Host, bundle pki.Bundle) member.View {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	v, expires, err := lookThrough(ctx, h, bundle)
	m.fill(v)
	m.CertificateExpires = expires
	if err != nil {
		m.Healthy, m.Problem = false, err.Error()+unitState(ctx, h)
	}
	return v
}

// fill takes over what a member says about itself. The zero view is a member
// that has said nothing.
func (m *MemberStatus) fill(v member.View) {
	if v.MemberID == 0 {
		return
	}
	m.ID = hexID(v.MemberID)
	m.Version, m.DBSize, m.Learner = v.Version, v.DBSize, v.Learner
	m.RaftTerm, m.RaftIndex = v.RaftTerm, v.RaftIndex
	m.Leader = v.Leader == v.MemberID
	switch {
	case len(v.Errors) > 0:
		m.Problem = strings.Join(v.Errors, ", ")
	case v.Leader == 0:
		m.Problem = "no leader"
	}
	m.Healthy = m.Problem == ""
}

// lookThrough asks a member through its host's connection. The time is the
// end of the certificate the member showed.
func lookThrough(ctx context.Context, h *step.Host, bundle pki.Bundle) (member.View, time.Time, error) {
	config, err := member.TLS(bundle.CA, bundle.HealthcheckClient)
	if err != nil {
		return member.View{}, time.Time{}, err
	}
	var mu sync.Mutex
	var expires time.Time
	config.VerifyConnection = func(state tls.ConnectionState) error {
		mu.Lock()
		defer mu.Unlock()
		expires = state.PeerCertificates[0].NotAfter
		return nil
	}
	client, err := member.Connect(h.Want.Member.ClientURL, config, h.Remote.DialContext)
	if err != nil {
		return member.View{}, time.Time{}, err
	}
	defer client.Close() //nolint:errcheck // nothing is lost
	v, err := member.Look(ctx, client)
	mu.Lock()
	defer mu.Unlock()
	return v, expires, err
}

// expiry is the end of a certificate; zero when it cannot be read.
func expiry(pair pki.Pair) time.Time {
	block, _ := pem.Decode(pair.Cert)
	if block == nil {
		return time.Time{}
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}
	}
	return cert.NotAfter
}

// unitState is what systemd says about a member that does not answer.
func unitState(ctx context.Context, h *step.Host) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTimeout)
	defer cancel()
	unit := h.Want.Units[0].Title()
	result, err := h.Remote.Run(ctx, remote.Command{
		Label: "look at " + unit, Functions: runner.Functions(h.Want), Script: "unit_facts | grep -E '^(Active|Sub)State='", AsLogin: true,
	})
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (%s: %s)", unit, strings.Join(strings.Fields(result.Stdout), " "))
}

// judge compares the members with each other and with the inventory.
func (s *Status) judge(expected []member.Expected, views []member.View) {
	answers := map[string]member.View{}
	s.Healthy = true
	for i, m := range s.Members {
		s.Healthy = s.Healthy && m.Healthy
		if views[i].MemberID == 0 {
			continue
		}
		if s.ClusterID == "" {
			s.ClusterID = hexID(views[i].ClusterID)
		}
		if views[i].Leader != 0 {
			s.Leader = hexID(views[i].Leader)
		}
		if m.Healthy {
			answers[m.Name] = views[i]
		}
	}
	err := member.Agree(expected, answers)
	switch {
	case len(answers) == 0:
		s.Problem = "no member answers"
	case err != nil:
		s.Healthy, s.Problem = false, err.Error()
	}
}

func hexID(id uint64) string { return fmt.Sprintf("%x", id) }
