package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"muster/kvserver/machine"
	"muster/kvserver/machine/auth"
)

// clock is a time that tests move.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func revision7() uint64 { return 7 }

func mustNew(t *testing.T, spec string, config Config) Provider {
	t.Helper()
	p, err := New(spec, config)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSimpleTokens(t *testing.T) {
	c := &clock{time.Unix(1000, 0)}
	caughtUp := 0
	var coming []machine.TokenChange
	var p Provider
	p = mustNew(t, "simple", Config{TTL: 300 * time.Second, Now: c.Now, CatchUp: func(context.Context) error {
		caughtUp++
		if len(coming) > 0 {
			p.Observe(coming)
		}
		coming = nil
		return nil
	}})
	owner := func(token string) string {
		t.Helper()
		who, err := p.Owner(t.Context(), token, revision7)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%s: %v, want ErrInvalid", token, err)
			}
			return ""
		}
		if who.Revision != 7 {
			t.Errorf("%s: revision %d, want that of the present", token, who.Revision)
		}
		return who.User
	}
	expect := func(what, token, want string) {
		t.Helper()
		if got := owner(token); got != want {
			t.Errorf("%s: %s is %q's, want %q's", what, token, got, want)
		}
	}
	assign := func(user, token string) machine.TokenChange { return machine.TokenChange{User: user, Token: token} }

	p.Observe([]machine.TokenChange{assign("u", "a.1"), assign("u", "b.2"), assign("root", "c.3")})
	expect("assigned", "a.1", "u")
	expect("assigned", "c.3", "root")
	if caughtUp != 0 {
		t.Error("known tokens need no catching up")
	}
	for _, bad := range []string{"", "a", "a.", "a.x", "a.1.1", "a.-1"} {
		expect("no token by its form", bad, "")
	}
	if caughtUp != 0 {
		t.Error("what is no token cost something")
	}
	coming = []machine.TokenChange{assign("u", "d.4")}
	expect("assigned by an entry that is not applied yet", "d.4", "u")
	expect("never assigned", "e.99999999999", "")

	c.now = c.now.Add(299 * time.Second)
	expect("used in time", "a.1", "u")
	c.now = c.now.Add(2 * time.Second)
	expect("renewed by its use", "a.1", "u")
	expect("not used in time", "c.3", "")
	p.Observe([]machine.TokenChange{assign("v", "f.5")})
	if left := len(p.(*simple).tokens); left != 2 {
		t.Errorf("%d tokens are kept, want a.1 and f.5 only", left)
	}

	p.Observe([]machine.TokenChange{{User: "u", Gone: true}})
	expect("its user is gone", "a.1", "")
	expect("another user", "f.5", "v")
	p.Observe([]machine.TokenChange{{Gone: true}, assign("v", "g.6")})
	expect("all are gone", "f.5", "")
	expect("assigned afterwards", "g.6", "v")
	p.Observe(nil)
	expect("changes were missed", "g.6", "")
}

func TestSimpleTokensCannotBeGuessed(t *testing.T) {
	p := mustNew(t, "simple", Config{})
	seen := map[string]bool{}
	for range 1000 {
		seed := p.Seed()
		if seen[seed] || len(seed) < 26 { // 128 bits in base 32
			t.Fatalf("the seed %q came twice, or is short", seed)
		}
		seen[seed] = true
	}
	if got, err := p.Issue(auth.Identity{User: "u", Revision: 1}, "seed.9"); got != "seed.9" || err != nil {
		t.Errorf("issued %q, %v; want what the log assigned", got, err)
	}
}

func TestCatchingUpFails(t *testing.T) {
	failure := errors.New("no quorum")
	p := mustNew(t, "simple", Config{CatchUp: func(context.Context) error { return failure }})
	if _, err := p.Owner(t.Context(), "a.1", revision7); !errors.Is(err, failure) {
		t.Errorf("%v, want %v: the token may be good", err, failure)
	}
}

// keyPair writes a pair of keys in PEM.
func keyPair(t *testing.T, kind string) (public, private string) {
	t.Helper()
	var key interface{ Public() any }
	switch kind {
	case "RS", "PS":
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		key = signer{k, &k.PublicKey}
	case "ES":
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		key = signer{k, &k.PublicKey}
	default:
		pub, k, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		key = signer{k, pub}
	}
	privateDER, err := x509.MarshalPKCS8PrivateKey(key.(signer).private)
	if err != nil {
		t.Fatal(err)
	}
	publicDER, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "pub.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER})),
		write(t, "priv.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: privateDER}))
}

type signer struct{ private, public any }

func (s signer) Public() any { return s.public }

func write(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWebTokens(t *testing.T) {
	rsaPublic, rsaPrivate := keyPair(t, "RS")
	ecPublic, ecPrivate := keyPair(t, "ES")
	edPublic, edPrivate := keyPair(t, "Ed")
	secret := write(t, "secret", []byte("not so secret"))
	c := &clock{time.Unix(1_000_000, 0)}
	who := auth.Identity{User: "u", Revision: 12}
	for _, spec := range []string{
		"jwt,sign-method=RS256,priv-key=" + rsaPrivate + ",pub-key=" + rsaPublic,
		"jwt,sign-method=PS384,priv-key=" + rsaPrivate,
		"jwt,sign-method=ES256,priv-key=" + ecPrivate + ",pub-key=" + ecPublic,
		"jwt,sign-method=EdDSA,priv-key=" + edPrivate + ",pub-key=" + edPublic,
		"jwt,sign-method=HS512,priv-key=" + secret,
	} {
		method := strings.Split(spec, ",")[1]
		p := mustNew(t, spec+",ttl=1m", Config{Now: c.Now})
		token, err := p.Issue(who, "")
		if err != nil {
			t.Fatalf("%s: %v", method, err)
		}
		if got, err := p.Owner(t.Context(), token, revision7); got != who || err != nil {
			t.Errorf("%s: owner %+v, %v, want %+v", method, got, err, who)
		}
		for what, spoiled := range map[string]string{"cut": token[:len(token)-2], "empty": "", "simple": "abc.1"} {
			if _, err := p.Owner(t.Context(), spoiled, revision7); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s, %s: %v, want ErrInvalid", method, what, err)
			}
		}
		start := c.now
		c.now = c.now.Add(61 * time.Second)
		if _, err := p.Owner(t.Context(), token, revision7); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s, expired: %v, want ErrInvalid", method, err)
		}
		c.now = start
	}

	verifyOnly := mustNew(t, "jwt,sign-method=RS256,pub-key="+rsaPublic, Config{Now: c.Now})
	if _, err := verifyOnly.Issue(who, ""); err == nil || err.Error() != "auth: token signing attempted with verify-only key" {
		t.Errorf("a token signed without a private key: %v", err)
	}
	pem, err := os.ReadFile(rsaPublic)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(method jwt.SigningMethod, claims jwt.MapClaims, key any) string {
		text, err := jwt.NewWithClaims(method, claims).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	claims := jwt.MapClaims{"username": "root", "revision": 12}
	for what, forged := range map[string]string{
		"signed by the public key": sign(jwt.SigningMethodHS256, claims, pem),
		"not signed":               sign(jwt.SigningMethodNone, claims, jwt.UnsafeAllowNoneSignatureType),
	} {
		if _, err := verifyOnly.Owner(t.Context(), forged, revision7); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", what, err)
		}
	}
	hmac := mustNew(t, "jwt,sign-method=HS256,priv-key="+secret, Config{Now: c.Now})
	for what, claims := range map[string]jwt.MapClaims{
		"no user":           {"revision": 1},
		"no revision":       {"username": "u"},
		"a text revision":   {"username": "u", "revision": "1"},
		"negative revision": {"username": "u", "revision": -1},
	} {
		if _, err := hmac.Owner(t.Context(), sign(jwt.SigningMethodHS256, claims, []byte("not so secret")), revision7); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", what, err)
		}
	}
}

func TestSpecs(t *testing.T) {
	public, private := keyPair(t, "ES")
	other, _ := keyPair(t, "ES")
	for spec, want := range map[string]string{
		"":              `no such kind of tokens: ""; use simple, or jwt with its options`,
		"sample":        `no such kind of tokens: "sample"`,
		"jwt":           `no such sign-method: ""`,
		"jwt,x":         `the token option "x" is not of the form name=value`,
		"jwt,ttl=1=2":   `the token option "ttl=1=2" is not of the form name=value`,
		"jwt,a=1,a=1":   "the token option a is given twice",
		"jwt,color=red": `no such option of jwt tokens: "color"`,
		"jwt,sign-method=none,priv-key=" + private:                             `no such sign-method: "none"`,
		"jwt,sign-method=ES256":                                                "there is no key; name its file with priv-key",
		"jwt,sign-method=HS256":                                                "the key is missing",
		"jwt,sign-method=ES256,ttl=soon,priv-key=" + private:                   "ttl: ",
		"jwt,sign-method=ES256,priv-key=" + filepath.Join(t.TempDir(), "none"): "read priv-key: ",
		"jwt,sign-method=RS256,priv-key=" + private:                            "parse " + private,
		"jwt,sign-method=ES256,pub-key=" + private:                             "parse " + private,
		"jwt,sign-method=ES256,priv-key=" + private + ",pub-key=" + other:      "is not the public key of",
		"jwt,sign-method=EdDSA,pub-key=" + public:                              "parse " + public,
	} {
		if _, err := New(spec, Config{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", spec, err, want)
		}
	}
}
