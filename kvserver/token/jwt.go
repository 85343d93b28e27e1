package token

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"muster/kvserver/machine"
	"muster/kvserver/machine/auth"
)

// The claims are etcd's, so that tokens made for it are good here.
const (
	claimUser     = "username"
	claimRevision = "revision"
	claimExpires  = "exp"
)

const defaultTTL = 5 * time.Minute

// errVerifyOnly has etcd's text.
var errVerifyOnly = errors.New("auth: token signing attempted with verify-only key")

// webTokens are signed. They cannot be taken back, but carry the auth
// revision, so that the next change of users, roles or permissions ends all of
// them.
type webTokens struct {
	method jwt.SigningMethod
	sign   any // nil when tokens are only checked
	verify any
	ttl    time.Duration
	now    func() time.Time
	parser *jwt.Parser
}

func newJWT(options map[string]string, now func() time.Time) (*webTokens, error) {
	for name := range options {
		if !slices.Contains([]string{"sign-method", "pub-key", "priv-key", "ttl"}, name) {
			return nil, fmt.Errorf("no such option of jwt tokens: %q; there are sign-method, pub-key, priv-key and ttl", name)
		}
	}
	t := &webTokens{ttl: defaultTTL, now: now, method: jwt.GetSigningMethod(options["sign-method"])}
	if t.method == nil || strings.EqualFold(t.method.Alg(), "none") {
		return nil, fmt.Errorf("jwt tokens: no such sign-method: %q; use RS256 or another of the standard's", options["sign-method"])
	}
	if text := options["ttl"]; text != "" {
		ttl, err := time.ParseDuration(text)
		if err != nil {
			return nil, fmt.Errorf("jwt tokens: ttl: %w", err)
		}
		t.ttl = ttl
	}
	if err := t.loadKeys(options["pub-key"], options["priv-key"]); err != nil {
		return nil, fmt.Errorf("jwt tokens signed by %s: %w", t.method.Alg(), err)
	}
	t.parser = jwt.NewParser(jwt.WithValidMethods([]string{t.method.Alg()}), jwt.WithTimeFunc(now))
	return t, nil
}

// loadKeys reads what files are named; which must be is for the method to say.
func (t *webTokens) loadKeys(public, private string) error {
	publicPEM, err := readKey("pub-key", public)
	if err != nil {
		return err
	}
	privatePEM, err := readKey("priv-key", private)
	if err != nil {
		return err
	}
	if _, symmetric := t.method.(*jwt.SigningMethodHMAC); symmetric {
		if len(privatePEM) == 0 {
			return errors.New("the key is missing; name its file with priv-key")
		}
		t.sign, t.verify = privatePEM, privatePEM
		return nil
	}
	if publicPEM == nil && privatePEM == nil {
		return errors.New("there is no key; name its file with priv-key, or with pub-key to only check tokens")
	}
	var own crypto.PublicKey
	if privatePEM != nil {
		key, err := parsePrivate(t.method, privatePEM)
		if err != nil {
			return fmt.Errorf("parse %s: %w", private, err)
		}
		own = key.Public()
		t.sign, t.verify = key, own
	}
	if publicPEM != nil {
		key, err := parsePublic(t.method, publicPEM)
		if err != nil {
			return fmt.Errorf("parse %s: %w", public, err)
		}
		if own != nil && !key.Equal(own) {
			return fmt.Errorf("%s is not the public key of %s; name the files of one pair", public, private)
		}
		t.verify = key
	}
	return nil
}

// readKey returns nil when no file is named.
func readKey(option, path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", option, err)
	}
	return pem, nil
}

func parsePrivate(method jwt.SigningMethod, pem []byte) (key crypto.Signer, err error) {
	switch method.(type) {
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		return jwt.ParseRSAPrivateKeyFromPEM(pem)
	case *jwt.SigningMethodECDSA:
		return jwt.ParseECPrivateKeyFromPEM(pem)
	default:
		parsed, err := jwt.ParseEdPrivateKeyFromPEM(pem)
		if err != nil {
			return nil, err
		}
		return parsed.(crypto.Signer), nil
	}
}

// comparablePublic is what every public key of the standard library can do.
type comparablePublic interface{ Equal(crypto.PublicKey) bool }

func parsePublic(method jwt.SigningMethod, pem []byte) (comparablePublic, error) {
	switch method.(type) {
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		return jwt.ParseRSAPublicKeyFromPEM(pem)
	case *jwt.SigningMethodECDSA:
		return jwt.ParseECPublicKeyFromPEM(pem)
	default:
		parsed, err := jwt.ParseEdPublicKeyFromPEM(pem)
		if err != nil {
			return nil, err
		}
		return parsed.(comparablePublic), nil
	}
}

// Seed implements Provider: what the log assigns is not used.
func (*webTokens) Seed() string { return "" }

// Issue implements Provider.
func (t *webTokens) Issue(who auth.Identity, _ string) (string, error) {
	if t.sign == nil {
		return "", errVerifyOnly
	}
	claims := jwt.MapClaims{claimUser: who.User, claimRevision: who.Revision, claimExpires: t.now().Add(t.ttl).Unix()}
	token, err := jwt.NewWithClaims(t.method, claims).SignedString(t.sign)
	if err != nil {
		return "", fmt.Errorf("sign a token for %s: %w", who.User, err)
	}
	return token, nil
}

// Owner implements Provider.
func (t *webTokens) Owner(_ context.Context, token string, _ func() uint64) (auth.Identity, error) {
	claims := jwt.MapClaims{}
	if _, err := t.parser.ParseWithClaims(token, claims, func(*jwt.Token) (any, error) { return t.verify, nil }); err != nil {
		return auth.Identity{}, ErrInvalid
	}
	user, named := claims[claimUser].(string)
	revision, dated := claims[claimRevision].(float64)
	if !named || !dated || revision < 0 {
		return auth.Identity{}, ErrInvalid
	}
	return auth.Identity{User: user, Revision: uint64(revision)}, nil
}

// Observe implements Provider: signed tokens need no keeping.
func (*webTokens) Observe([]machine.TokenChange) {}
