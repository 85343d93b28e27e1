package step

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"muster/pki"
	"muster/provision/desired"
	"muster/provision/inventory"
	"muster/provision/member"
	"muster/provision/observed"
	"muster/provision/plan"
	"muster/provision/remote"
)

// addAPIServers makes a Host of each machine with a kube-apiserver. What belongs
// onto it is brought by the cluster whose document lists it.
func (r *Run) addAPIServers() {
	for i, a := range r.Cluster.Callers() {
		one := &Host{Host: inventory.Host{Name: a.Name, Address: a.Address, SSH: a.SSH}, run: r, OnlyCalls: i >= len(r.Cluster.APIServers())}
		if c, ok := r.Cluster.Controller(a); ok {
			at := slices.IndexFunc(r.Hosts, func(h *Host) bool { return h.Name == c.Name })
			one.controller = r.Hosts[at]
		}
		r.APIServers = append(r.APIServers, one)
	}
	r.outfitAPIServers()
}

func (r *Run) outfitAPIServers() {
	for _, a := range r.APIServers {
		a.Want = a.Wanted(r.Bundle)
	}
}

// Wanted is what a machine with a kube-apiserver should have.
func (h *Host) Wanted(bundle pki.Bundle) desired.Host {
	if h.OnlyCalls {
		return desired.Host{Name: h.Name}
	}
	return desired.ForAPIServer(h.Name, bundle)
}

// LookAtAPIServers connects to the machines with a kube-apiserver and finds out
// what they have. They are not locked: whoever has locked the controllers is
// the only one to bring anything there.
func LookAtAPIServers(ctx context.Context, r *Run) error {
	return r.forEach(r.APIServers, func(a *Host) *Error {
		if err := LookAtAPIServer(ctx, a); err != nil {
			return &Error{Step: a.step, Host: a.Name, Err: err}
		}
		return nil
	})
}

// LookAtAPIServer is LookAtAPIServers for one of them.
func LookAtAPIServer(ctx context.Context, a *Host) (err error) {
	switch {
	case a.Remote != nil:
	case a.controller != nil && a.controller.Remote != nil:
		a.Remote = a.controller.Remote
	default:
		if err := Connect(ctx, a); err != nil {
			return err
		}
	}
	if a.OnlyCalls {
		return nil
	}
	a.Facts, err = observed.GatherFiles(ctx, a.Remote, a.Want)
	return err
}

// examineAPIServers adds what keeps the files from being delivered.
func (r *Run) examineAPIServers(found *PreflightError) error {
	for _, a := range r.APIServers {
		if a.Remote == nil || a.OnlyCalls {
			continue
		}
		e := examination{Host: a, found: found}
		if a.controller == nil { // else the same was found there
			e.privilege()
			e.clock(r.Hosts)
		}
		err := a.checkForeign()
		var other *foreignError
		switch {
		case errors.As(err, &other):
			e.problem("%s", other)
		case err != nil:
			return &localError{err}
		}
	}
	return nil
}

// foreignError is a file that is not of this cluster's CA.
type foreignError struct{ path string }

func (e *foreignError) Error() string {
	return fmt.Sprintf("%s is not of this cluster's CA: a kube-apiserver here has another etcd; if it has not, move the file away, or else take the machine out of kubernetes.apiservers", e.path)
}

// checkForeign is an error when the machine has files of another CA, which are
// never replaced.
func (h *Host) checkForeign() error {
	for _, name := range []string{desired.KubernetesCA, desired.KubernetesCert} {
		have, exists := h.Facts.Files[name]
		if !exists {
			continue
		}
		ours, err := h.run.PKI.Ours([]byte(have.Text))
		if err != nil {
			return err
		}
		if !ours {
			return &foreignError{name}
		}
	}
	return nil
}

// planAPIServers adds what is to be delivered.
func (r *Run) planAPIServers(p *plan.Plan) {
	for _, a := range r.APIServers {
		if !a.OnlyCalls && !slices.Contains(p.Hosts, a.Name) {
			p.Hosts = append(p.Hosts, a.Name)
		}
		p.Changes = append(p.Changes, plan.Host{Want: a.Want, Have: a.Facts}.CompareFiles()...)
	}
}

// Deliver brings the CA's certificate and the client's pair to the machines
// with a kube-apiserver, all three together, where they differ.
func Deliver(ctx context.Context, r *Run) error {
	return r.forEach(r.APIServers, func(a *Host) *Error {
		if err := deliver(ctx, a); err != nil {
			return &Error{Step: a.step, Host: a.Name, Err: err}
		}
		return nil
	})
}

func deliver(ctx context.Context, a *Host) error {
	if a.OnlyCalls {
		return nil
	}
	if err := LookAtAPIServer(ctx, a); err != nil {
		return err
	}
	if err := a.checkForeign(); err != nil { // it was not there before
		return fmt.Errorf("%s: %w", a.Name, err)
	}
	if err := MakeDirectories(ctx, a); err != nil {
		return err
	}
	missing := func(f desired.File) bool { return len(f.Content) == 0 }
	files := slices.DeleteFunc(slices.Clone(a.Want.Files), missing)
	if len(files) < len(a.Want.Files) {
		a.warn(noClient)
	}
	return a.placeTogether(ctx, files)
}

// noClient is told in a rotation after the CA's key was lost: nothing can be
// signed before the new CA does it.
const noClient = "the client's certificate for a kube-apiserver is not on the workstation, and what is there stays; the new CA makes another"

// deliveredTo are the files of ours that a machine with a kube-apiserver has.
func deliveredTo(a *Host) []string {
	if a.OnlyCalls || a.checkForeign() != nil { // they are somebody else's, or nobody can say
		return nil
	}
	return ours(a)
}

// RemoveDelivered removes what was delivered. The directories are Kubernetes'
// own, but for the one of the CA alone.
func RemoveDelivered(ctx context.Context, r *Run) error {
	return r.forEach(r.APIServers, func(a *Host) *Error {
		paths := deliveredTo(a)
		if len(paths) == 0 {
			return nil
		}
		err := a.changeByScript(ctx, fmt.Sprintf("removed the certificates for a kube-apiserver (%d files)", len(paths)), remote.Command{
			Label: "remove the delivered files", Script: `dir=$1; shift; rm -f -- "$@"; [ -n "$(ls -A "$dir")" ] || rmdir "$dir"`,
			Args: append([]string{path.Dir(desired.KubernetesCA)}, paths...),
		})
		if err != nil {
			return &Error{Step: a.step, Host: a.Name, Err: err}
		}
		return nil
	})
}

// reachPatience is how long a machine is tried again that cannot reach a member:
// that one serves already.
const reachPatience = 2 * time.Second

// Unreached is a member that does not answer a machine with a kube-apiserver.
type Unreached struct {
	Member string // the host's name
	URL    string
	Err    error
}

// VerifyAPIServers asks every member for its version from every machine with a
// kube-apiserver, as kubeadm does it, with what was delivered there.
func VerifyAPIServers(ctx context.Context, r *Run) error {
	if pair := r.Bundle.APIServerEtcdClient; len(pair.Cert) == 0 || len(pair.Key) == 0 {
		r.report(Note, "reach", "", "nobody has asked from there: "+noClient)
		return nil
	}
	return r.forEach(r.APIServers, func(a *Host) *Error {
		unreached, err := Reach(ctx, a, r.Bundle)
		if err == nil && len(unreached) > 0 {
			err = &reachError{a.Name, len(r.Hosts), unreached}
		}
		if err != nil {
			return &Error{Step: a.step, Host: a.Name, Err: err}
		}
		return nil
	})
}

// Reach returns the members that do not answer a machine with a kube-apiserver,
// in the order of the inventory. The bundle has the CA and the pair that they are asked with.
func Reach(ctx context.Context, a *Host, with pki.Bundle) ([]Unreached, error) {
	config, err := member.TLS(with.CA, with.APIServerEtcdClient)
	if err != nil {
		return nil, &localError{err}
	}
	client := &http.Client{Transport: &http.Transport{DialContext: a.Remote.DialContext, TLSClientConfig: config}, Timeout: callTimeout}
	defer client.CloseIdleConnections()
	errs := make([]error, len(a.run.Hosts))
	var wg sync.WaitGroup
	for i, h := range a.run.Hosts {
		wg.Go(func() { errs[i] = awaitVersion(ctx, client, h.Want.Member.ClientURL) })
	}
	wg.Wait()
	var unreached []Unreached
	for i, h := range a.run.Hosts {
		if errs[i] != nil {
			unreached = append(unreached, Unreached{h.Name, h.Want.Member.ClientURL, errs[i]})
		}
	}
	return unreached, ctx.Err()
}

func awaitVersion(ctx context.Context, client *http.Client, url string) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for begun := time.Now(); ; {
		err := askVersion(ctx, client, url)
		if err == nil || ctx.Err() != nil || isProhibited(err) || time.Since(begun) > reachPatience {
			return err
		}
		<-tick.C
	}
}

// isProhibited says that sshd forwards no connections.
func isProhibited(err error) bool {
	var refused *ssh.OpenChannelError
	return errors.As(err, &refused) && refused.Reason == ssh.Prohibited
}

func askVersion(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/version", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close() //nolint:errcheck // nothing is lost
	var version struct {
		Server string `json:"etcdserver"`
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("/version says %s", response.Status)
	}
	if err := json.NewDecoder(response.Body).Decode(&version); err != nil {
		return fmt.Errorf("read /version: %w", err)
	}
	if version.Server == "" {
		return errors.New("/version names no etcdserver")
	}
	return nil
}

// reachError is a machine with a kube-apiserver that would not work there.
type reachError struct {
	host      string
	of        int
	unreached []Unreached
}

func (e *reachError) Error() string {
	texts := make([]string, len(e.unreached))
	for i, u := range e.unreached {
		texts[i] = u.URL + ": " + u.Err.Error()
	}
	return fmt.Sprintf("%s: %d of %d members do not answer from there, so that a kube-apiserver would miss them: %s", e.host, len(e.unreached), e.of, strings.Join(texts, "; "))
}

// Unwrap gives errors.As the causes.
func (e *reachError) Unwrap() []error {
	errs := make([]error, len(e.unreached))
	for i, u := range e.unreached {
		errs[i] = u.Err
	}
	return errs
}

// Hint says what to do about it.
func (e *reachError) Hint() string { return e.unreached[0].Remedy() }

// Remedy says what to do about it.
func (u Unreached) Remedy() string {
	var refused *ssh.OpenChannelError
	switch {
	case isProhibited(u.Err):
		return "muster asks through the SSH connection: write AllowTcpForwarding yes for its user into the sshd_config of that machine"
	case errors.As(u.Err, &refused), errors.Is(u.Err, context.DeadlineExceeded):
		return fmt.Sprintf("let TCP connections to %s pass, in the firewalls of and between the machines; is internalAddress of %s the right one?", address(u.URL), u.Member)
	}
	return "muster certs check judges the certificates of both sides, muster status the member"
}
