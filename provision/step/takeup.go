package step

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"time"

	"muster/pki"
	"muster/provision/desired"
	"muster/provision/member"
	"muster/provision/remote"
)

// takeUpPatience is how long a member may go on with what it had before its
// files were changed. musterd reads them for every connection; a server that
// does not is restarted after that.
const takeUpPatience = time.Second

// staleError is a member that answers, and does not use what is installed.
type staleError struct{ text string }

func (e *staleError) Error() string { return e.text }

// proof asks a member whether it uses what is installed: no error when it does,
// a *staleError when it does not, any other when it cannot be said.
type proof func(context.Context, *Host) error

// endpoint is a port of a member that speaks TLS, and the role of the
// certificate that it serves.
type endpoint struct {
	url  string
	role pki.Role
}

// endpoints are those of a host's member. Where it listens on every address,
// the one that it advertises stands for all.
func endpoints(h *Host) []endpoint {
	all := []endpoint{{h.Want.Member.ClientURL, pki.Server}}
	for _, u := range h.ClientListenURLs() {
		if u != h.Want.Member.ClientURL && !strings.Contains(u, "//0.0.0.0:") {
			all = append(all, endpoint{u, pki.Server})
		}
	}
	return append(all, endpoint{h.Want.Member.PeerURL, pki.Peer})
}

// shakeAll makes a handshake with every endpoint of the host's member.
func shakeAll(ctx context.Context, h *Host, pair pki.Pair, judge func(url string, role pki.Role, shown member.Handshake) error) error {
	for _, e := range endpoints(h) {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		shown, err := member.Shake(call, e.url, pair, h.Remote.DialContext)
		cancel()
		if err == nil {
			err = judge(e.url, e.role, shown)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// servesItsLeaves proves that a member serves, on every endpoint, the
// certificate that the bundle has for it.
func servesItsLeaves(ctx context.Context, h *Host) error {
	pairs := h.run.Bundle.Hosts[h.Name]
	return shakeAll(ctx, h, h.run.Bundle.HealthcheckClient, func(url string, role pki.Role, shown member.Handshake) error {
		pair := pairs.Server
		if role == pki.Peer {
			pair = pairs.Peer
		}
		want, err := parseCertificate(pair.Cert)
		if err != nil {
			return fmt.Errorf("the %s certificate of %s: %w", role, h.Name, err)
		}
		if !shown.Served.Equal(want) {
			return &staleError{fmt.Sprintf("%s serves the certificate %x on %s, not %x", h.Name, shown.Served.SerialNumber, url, want.SerialNumber)}
		}
		return nil
	})
}

// trusts proves that a member admits clients of the CA of a pair.
func trusts(pair pki.Pair) proof {
	return func(ctx context.Context, h *Host) error {
		return shakeAll(ctx, h, pair, func(url string, _ pki.Role, shown member.Handshake) error {
			if shown.Stranger {
				return &staleError{fmt.Sprintf("%s does not trust the new CA on %s", h.Name, url)}
			}
			return nil
		})
	}
}

// trustsNoMore proves that a member refuses clients of the CA of a pair. A
// pair that is empty proves nothing and is not asked about.
func trustsNoMore(pair pki.Pair) proof {
	return func(ctx context.Context, h *Host) error {
		if len(pair.Cert) == 0 || len(pair.Key) == 0 {
			return nil
		}
		return shakeAll(ctx, h, pair, func(url string, _ pki.Role, shown member.Handshake) error {
			if !shown.Stranger && !expired(pair) {
				return &staleError{fmt.Sprintf("%s still trusts the old CA on %s", h.Name, url)}
			}
			return nil
		})
	}
}

// expired says that a client is refused for its age, whoever signed it.
func expired(pair pki.Pair) bool {
	cert, err := parseCertificate(pair.Cert)
	return err != nil || time.Now().After(cert.NotAfter)
}

func parseCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("not PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

// takeUp waits until the members of some hosts use what is installed, and
// restarts those that do not by themselves, one at a time.
func takeUp(ctx context.Context, r *Run, hosts []*Host, prove proof) error {
	answers := make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() { answers[i] = awaitProof(ctx, h, prove, takeUpPatience) })
	}
	wg.Wait()
	var due []*Host
	for i, h := range hosts {
		var stale *staleError
		switch err := answers[i]; {
		case errors.As(err, &stale):
			r.report(Note, h.step, h.Name, err.Error()+"; its member is restarted")
			due = append(due, h)
		case err != nil:
			return &hostError{h.Name, err}
		}
	}
	if len(due) == 0 {
		return nil
	}
	c, err := converse(r)
	if err != nil {
		return err
	}
	defer c.close()
	for _, h := range c.leaderLast(ctx, due) {
		if err := restartOne(ctx, r, h); err != nil {
			return err
		}
		if err := awaitProof(ctx, h, prove, r.ReadyTimeout); err != nil {
			return &hostError{h.Name, fmt.Errorf("after its restart: %w", err)}
		}
	}
	return nil
}

// awaitProof asks until the proof is there. A definite no ends the wait after
// the patience given, silence after ReadyTimeout.
func awaitProof(ctx context.Context, h *Host, prove proof, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, h.run.ReadyTimeout)
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	var staleSince time.Time
	for {
		err := prove(ctx, h)
		var stale *staleError
		switch {
		case err == nil:
			return nil
		case !errors.As(err, &stale):
			staleSince = time.Time{}
		case staleSince.IsZero():
			staleSince = time.Now()
		case time.Since(staleSince) > patience:
			return err
		}
		select {
		case <-h.Remote.Lost():
			return fmt.Errorf("%s: ask the member: %w", h.Name, remote.ErrConnectionLost)
		case <-ctx.Done():
			return fmt.Errorf("%s: the member does not answer within %v (--timeout): %w; see muster status", h.Name, h.run.ReadyTimeout, err)
		case <-tick.C:
		}
	}
}

// installCertificates places certificates and keys, and nothing else; those of
// a pair together. No note is left that a restart is due, as apply would leave
// it: whether the member uses them is proved, by this run or by the one that
// goes on with its work.
func installCertificates(ctx context.Context, h *Host, which func(name string) bool) error {
	pairs := map[string][]desired.File{}
	var order []string
	for _, f := range h.Want.Files {
		if !isCertificateFile(f.Path) || !which(path.Base(f.Path)) {
			continue
		}
		stem := strings.TrimSuffix(f.Path, path.Ext(f.Path))
		if pairs[stem] == nil {
			order = append(order, stem)
		}
		pairs[stem] = append(pairs[stem], f)
	}
	for _, stem := range order {
		if err := h.placeTogether(ctx, pairs[stem]); err != nil {
			return err
		}
	}
	return Remember(ctx, h)
}

// placeTogether places those of some files that differ on the host.
func (h *Host) placeTogether(ctx context.Context, wanted []desired.File) error {
	var files []remote.File
	var contents [][]byte
	var names []string
	for _, f := range wanted {
		have := h.Facts.Files[f.Path]
		file := remote.File{Path: f.Path, Mode: f.Mode, Owner: f.Owner, Group: f.Group}
		sum := sha256.Sum256(f.Content)
		if have.SHA256 == hex.EncodeToString(sum[:]) {
			if err := h.setAttributes(ctx, file, have); err != nil {
				return err
			}
			continue
		}
		files, contents, names = append(files, file), append(contents, f.Content), append(names, f.Path)
	}
	if len(files) == 0 {
		return nil
	}
	return h.Change(ctx, "wrote "+strings.Join(names, " and "), func(ctx context.Context) error {
		return h.Remote.WriteTogether(ctx, files, contents)
	})
}

func anyFile(string) bool { return true }

func onlyTheBundle(name string) bool { return name == "ca.crt" }
