package v2api_test

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/bcrypt"

	"muster/kvserver"
	"muster/kvserver/etcd34"
	"muster/kvserver/internal/loopback"
)

var (
	seeds    = flag.Int("v2api.seeds", 1, "how many random histories are compared")
	requests = flag.Int("v2api.requests", 400, "requests of a random history")
	first    = flag.Uint64("v2api.seed", rand.Uint64(), "seed of the first random history")
)

// patience is far more than anything takes on a busy machine.
const patience = time.Minute

// startMusterd runs a member that is alone and returns its client URL.
func startMusterd(t *testing.T, change func(*kvserver.Config)) (*kvserver.Server, string) {
	t.Helper()
	server, endpoint := launch(t, change)
	awaitReady(t, server)
	return server, endpoint
}

func awaitReady(t *testing.T, server *kvserver.Server) {
	t.Helper()
	select {
	case <-server.Ready():
	case <-time.After(patience):
		t.Fatal("musterd is not ready")
	}
}

// launch starts a member, alone unless change says otherwise.
func launch(t *testing.T, change func(*kvserver.Config)) (*kvserver.Server, string) {
	t.Helper()
	config := kvserver.Default()
	config.EnableV2 = true
	config.Name = "m0"
	config.DataDir, config.Logger = filepath.Join(t.TempDir(), "musterd"), slog.New(slog.DiscardHandler)
	config.BcryptCost = bcrypt.MinCost
	client, peer := "http://"+loopback.Address(t), "http://"+loopback.Address(t)
	config.ListenClientURLs, config.AdvertiseClientURLs = []string{client}, []string{client}
	config.ListenPeerURLs, config.InitialAdvertisePeerURLs = []string{peer}, []string{peer}
	config.InitialCluster = "m0=" + peer
	if change != nil {
		change(&config)
	}
	server, err := kvserver.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return server, config.ListenClientURLs[0]
}

// pair is etcd 3.4 and musterd.
type pair struct{ etcd, ours string }

func startPair(t *testing.T) pair {
	t.Helper()
	etcd := etcd34.Start(t, "http://"+loopback.Address(t))[0]
	_, ours := startMusterd(t, nil)
	return pair{etcd, ours}
}

// request is one that both are asked.
type request struct {
	method, path string
	form         string // in the body, unless it is JSON
	login        string // name:password
}

func (r request) String() string {
	return strings.TrimSpace(r.method + " " + r.path + " " + r.form + " " + r.login)
}

// ask returns what a server answers: status, headers and body.
func (r request) ask(t *testing.T, endpoint string) (int, http.Header, string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), r.method, endpoint+r.path, strings.NewReader(r.form))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if strings.HasPrefix(r.form, "{") {
		q.Header.Set("Content-Type", "application/json")
	}
	if name, password, ok := strings.Cut(r.login, ":"); ok {
		q.SetBasicAuth(name, password)
	}
	client := http.Client{Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(q)
	if err != nil {
		t.Fatalf("%v: %v", r, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%v: %v", r, err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

var (
	expiration = regexp.MustCompile(`"expiration":"[^"]*"`)
	ttl        = regexp.MustCompile(`"ttl":(-?[0-9]+)`)
	late       = regexp.MustCompile(`,"ttl":-[0-9]+`) // by how much something was removed too late
	identity   = regexp.MustCompile(`\b[0-9a-f]{13,16}\b`)
	address    = regexp.MustCompile(`127\.[0-9.]+:[0-9]+`)
)

// describe writes an answer without what differs from one server to another. In
// what is listed without being sorted the order is of no meaning.
func (r request) describe(status int, header http.Header, body string) string {
	var b strings.Builder
	fmt.Fprintln(&b, status)
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range header {
			if !yield(name) {
				return
			}
		}
	}) {
		value := strings.Join(header[name], ",")
		switch name {
		case "Date":
			continue
		case "X-Raft-Index", "X-Raft-Term", "X-Etcd-Cluster-Id", "Content-Length":
			value = "some"
		}
		fmt.Fprintf(&b, "%s: %s\n", name, value)
	}
	b.WriteString(mask(body, !strings.Contains(r.path, "sorted=true")))
	return b.String()
}

func mask(body string, sort bool) string {
	if sort && strings.Contains(body, `"nodes":`) {
		body = sortNodes(body)
	}
	body = expiration.ReplaceAllString(body, `"expiration":"E"`)
	body = late.ReplaceAllString(body, "")
	body = ttl.ReplaceAllString(body, `"ttl":T`)
	return address.ReplaceAllString(identity.ReplaceAllString(body, "ID"), "ADDRESS")
}

func sortNodes(body string) string {
	var event struct {
		Action string `json:"action"`
		Node   *node  `json:"node"`
	}
	decoder := json.NewDecoder(strings.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&event); err != nil {
		return fmt.Sprintf("%v: %s", err, body)
	}
	event.Node.sort()
	sorted, err := json.Marshal(event)
	if err != nil {
		return err.Error()
	}
	return string(sorted)
}

type node struct {
	Key        string  `json:"key,omitempty"`
	Value      *string `json:"value,omitempty"`
	Dir        bool    `json:"dir,omitempty"`
	Expiration string  `json:"expiration,omitempty"`
	TTL        int     `json:"ttl,omitempty"`
	Nodes      []*node `json:"nodes,omitempty"`
	Modified   uint64  `json:"modifiedIndex,omitempty"`
	Created    uint64  `json:"createdIndex,omitempty"`
}

func (n *node) sort() {
	slices.SortFunc(n.Nodes, func(a, b *node) int { return strings.Compare(a.Key, b.Key) })
	for _, child := range n.Nodes {
		child.sort()
	}
}

// compare asks both and compares the answers. It returns musterd's.
func (p pair) compare(t *testing.T, r request) (status int, body string) {
	t.Helper()
	want := r.describe(r.ask(t, p.etcd))
	status, header, body := r.ask(t, p.ours)
	if diff := cmp.Diff(want, r.describe(status, header, body)); diff != "" {
		t.Fatalf("%v: the answers differ (-etcd +musterd)\n%s", r, diff)
	}
	return status, body
}

// TestLikeEtcd makes random requests of etcd 3.4 and of musterd, while several
// clients of each watch, and compares all that is answered.
func TestLikeEtcd(t *testing.T) {
	for i := range *seeds {
		seed := *first + uint64(i) //nolint:gosec // small
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			p := startPair(t)
			watched := []string{"/", "/a", "/a/b", "/_h", "/a/_h", "/ab"}
			var watches [][2]*stream
			for _, at := range watched {
				for _, recursive := range []bool{false, true} {
					query := fmt.Sprintf("/v2/keys%s?wait=true&stream=true&recursive=%v", at, recursive)
					watches = append(watches, [2]*stream{watch(t, p.etcd+query), watch(t, p.ours+query)})
				}
			}
			g := &generator{rand.New(rand.NewPCG(seed, 1))}
			for range *requests {
				p.compare(t, g.request())
			}
			// Each watch ends with the event that its own path becomes "end".
			for _, name := range []string{"a", "b", "ab", "_h", "d"} {
				p.compare(t, request{method: "DELETE", path: "/v2/keys/" + name + "?recursive=true"})
			}
			end := func(at string) { p.compare(t, request{method: "PUT", path: "/v2/keys" + at, form: "value=end"}) }
			for _, at := range []string{"/a/b", "/a/_h", "/_h", "/ab"} {
				end(at)
			}
			p.compare(t, request{method: "DELETE", path: "/v2/keys/a?recursive=true"})
			end("/a")
			end("/end")
			for i, pair := range watches {
				at, recursive := watched[i/2], i%2 == 1
				last := fmt.Sprintf(`"key":%q,"value":"end"`, at)
				if at == "/" {
					if !recursive {
						continue // nothing happens to the root itself
					}
					last = `"key":"/end"`
				}
				want, got := pair[0].until(t, last), pair[1].until(t, last)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("watch %s, recursive %v (-etcd +musterd):\n%s", at, recursive, diff)
				}
			}
		})
	}
}

// stream is what a watcher is told.
type stream struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{}
}

func watch(t *testing.T, address string) *stream {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	s := &stream{more: make(chan struct{}, 1)}
	go func() {
		scanner := bufio.NewScanner(resp.Body)
		for scanner.Scan() {
			s.add(mask(scanner.Text(), true))
		}
	}()
	return s
}

func (s *stream) add(line string) {
	s.mu.Lock()
	s.lines = append(s.lines, line)
	s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// until waits for an event with a text in it and returns all up to it.
func (s *stream) until(t *testing.T, last string) []string {
	t.Helper()
	for deadline := time.After(patience); ; {
		s.mu.Lock()
		lines := slices.Clone(s.lines)
		s.mu.Unlock()
		if i := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, last) }); i >= 0 {
			return lines[:i+1]
		}
		select {
		case <-s.more:
		case <-deadline:
			t.Fatalf("the last event has not come, but %s", strings.Join(lines, "\n"))
		}
	}
}

// generator makes requests on a few paths.
type generator struct{ *rand.Rand }

func (g *generator) one(of ...string) string { return of[g.IntN(len(of))] }

func (g *generator) key() string {
	at := "/v2/keys"
	for range 1 + g.IntN(3) {
		at = path.Join(at, g.one("a", "b", "ab", "_h", "d"))
	}
	if g.IntN(50) == 0 {
		return "/v2/keys" + g.one("", "/")
	}
	return at
}

func (g *generator) request() request {
	form := url.Values{}
	add := func(chance int, name string, values ...string) {
		if g.IntN(chance) == 0 {
			form.Set(name, g.one(values...))
		}
	}
	at := g.key()
	switch g.IntN(10) {
	case 0, 1, 2:
		add(2, "recursive", "true", "false", "1", "nonsense")
		form.Set("sorted", "true")
		add(4, "quorum", "true", "false", "x")
		return request{method: g.one("GET", "GET", "HEAD"), path: at + "?" + form.Encode()}
	case 3, 4:
		add(2, "recursive", "true")
		add(3, "dir", "true", "true", "false")
		add(5, "prevValue", "x", "y", "")
		add(6, "prevIndex", fmt.Sprint(4+g.IntN(400)), "0", "nonsense")
		return request{method: "DELETE", path: at + "?" + form.Encode()}
	case 5:
		add(2, "value", "x", "y", "<&>\u2028é")
		add(6, "ttl", "1000", "nonsense")
		add(10, "dir", "true")
		return request{method: "POST", path: at, form: form.Encode()}
	case 6:
		return request{method: "PUT", path: at, form: "refresh=true&ttl=1000" + g.one("", "&prevExist=true", "&prevValue=x")}
	default:
		add(2, "value", "x", "y", "", "\xff")
		add(5, "ttl", "1000", "100", "", "-1")
		add(4, "dir", "true", "false")
		add(5, "prevExist", "true", "false", "2")
		add(5, "prevValue", "x", "y", "")
		add(8, "prevIndex", fmt.Sprint(4+g.IntN(400)), "18446744073709551616")
		add(8, "refresh", "true", "false", "?")
		add(12, "noValueOnSuccess", "true")
		add(40, "wait", "true")
		return request{method: "PUT", path: at, form: form.Encode()}
	}
}
